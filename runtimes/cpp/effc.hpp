/* effc.hpp - C++ (11 and later) over the C API of effc.h: an instance as a class, errors as
 * exceptions.
 *
 *     effc::models::NAME model;                          // NAME.hpp
 *     model.run({effc::tensor(pixels)}, {effc::tensor(scores)});
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef EFFC_HPP
#define EFFC_HPP

#include <cstddef>
#include <initializer_list>
#include <stdexcept>

#include "effc.h"

namespace effc {

/* A status other than EFFC_OK. */
class error : public std::runtime_error {
public:
    explicit error(effc_status status)
        : std::runtime_error(effc_status_message(status)), status_(status)
    {
    }

    effc_status status() const noexcept { return status_; }

private:
    effc_status status_;
};

/* Memory of `count` elements. Inputs may be constant: they are never written. */
template <class T> effc_tensor tensor(T *data, std::size_t count) noexcept
{
    return {const_cast<void *>(static_cast<const volatile void *>(data)), count * sizeof(T)};
}

/* The elements of a std::vector, std::array, std::span ..., which must outlive the call. */
template <class Container> effc_tensor tensor(Container &&elements) noexcept
{
    return tensor(elements.data(), elements.size());
}

/* An instance of a model; movable, not copyable. One thread at a time may use it. */
template <const effc_model_info *(*Info)(void),
          effc_status (*Create)(const effc_options *, effc_model **),
          effc_status (*Run)(effc_model *, const effc_tensor *, const effc_tensor *),
          void (*Destroy)(effc_model *)>
class model {
public:
    static const effc_model_info &info() noexcept { return *Info(); }

    model() : model(effc_options()) {}

    explicit model(const effc_options &options) : handle_(nullptr)
    {
        check(Create(&options, &handle_));
    }

    model(model &&other) noexcept : handle_(other.handle_) { other.handle_ = nullptr; }

    model &operator=(model &&other) noexcept
    {
        if (this != &other) {
            Destroy(handle_);
            handle_ = other.handle_;
            other.handle_ = nullptr;
        }
        return *this;
    }

    model(const model &) = delete;
    model &operator=(const model &) = delete;

    ~model() { Destroy(handle_); }

    /* One inference; allocates nothing. One tensor per input and per output. */
    void run(const effc_tensor *inputs, const effc_tensor *outputs)
    {
        check(Run(handle_, inputs, outputs));
    }

    void run(std::initializer_list<effc_tensor> inputs, std::initializer_list<effc_tensor> outputs)
    {
        if (inputs.size() != static_cast<std::size_t>(info().input_count) ||
            outputs.size() != static_cast<std::size_t>(info().output_count))
            throw std::invalid_argument("another number of tensors than the model's");
        run(inputs.begin(), outputs.begin());
    }

    /* For functions of the C API. */
    effc_model *get() const noexcept { return handle_; }

private:
    static void check(effc_status status)
    {
        if (status != EFFC_OK)
            throw error(status);
    }

    effc_model *handle_;
};

} // namespace effc

#endif
