/* model_jni.c - native methods of a model's Java class, over the C API.
 *
 * Compiled once per model: EFFC_HEADER is its header in quotes, EFFC_MODEL its prefix, EFFC_CLASS
 * the Java class as it stands in names of native methods. Nothing here allocates, throws or looks
 * up a Java name: buffers come checked, statuses go back as numbers.
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#include EFFC_HEADER
#include "jni_abi.h"

#define JOIN_(a, b, c) a##b##c
#define JOIN(a, b, c) JOIN_(a, b, c)
#define MODEL(function) JOIN(EFFC_MODEL, _, function)
#define METHOD(name) __attribute__((visibility("default"))) JOIN(Java_, EFFC_CLASS, _##name)

/* Fills tensors from an array of direct byte buffers. */
static void get_tensors(JNIEnv_pointer env, jobjectArray buffers, const effc_tensor_info *infos,
                        int32_t count, effc_tensor *tensors)
{
    for (int32_t i = 0; i < count; i++) {
        jobject buffer = jni_element(env, buffers, i);
        tensors[i].data = jni_buffer_address(env, buffer);
        tensors[i].bytes = infos[i].bytes;
        jni_delete_local_ref(env, buffer);
    }
}

jint METHOD(nativeCreate)(JNIEnv_pointer env, jclass type, jint threads, jlong affinity,
                          jobject weights, jlongArray handle);
jint METHOD(nativeCreate)(JNIEnv_pointer env, jclass type, jint threads, jlong affinity,
                          jobject weights, jlongArray handle)
{
    (void)type;
    effc_options options = {0};
    options.threads = threads;
    options.affinity = (uint64_t)affinity;
    if (weights != NULL) {
        options.weights = jni_buffer_address(env, weights);
        options.weights_bytes = (size_t)jni_buffer_bytes(env, weights);
    }
    effc_model *model = NULL;
    effc_status status = MODEL(create)(&options, &model);
    if (status == EFFC_OK)
        jni_set_long(env, handle, (jlong)(intptr_t)model);
    return (jint)status;
}

jint METHOD(nativeRun)(JNIEnv_pointer env, jclass type, jlong handle, jobjectArray inputs,
                       jobjectArray outputs);
jint METHOD(nativeRun)(JNIEnv_pointer env, jclass type, jlong handle, jobjectArray inputs,
                       jobjectArray outputs)
{
    (void)type;
    const effc_model_info *info = MODEL(info)();
    effc_tensor in[MODEL(INPUT_COUNT) + 1], out[MODEL(OUTPUT_COUNT) + 1];
    get_tensors(env, inputs, info->inputs, info->input_count, in);
    get_tensors(env, outputs, info->outputs, info->output_count, out);
    return (jint)MODEL(run)((effc_model *)(intptr_t)handle, in, out);
}

void METHOD(nativeDestroy)(JNIEnv_pointer env, jclass type, jlong handle);
void METHOD(nativeDestroy)(JNIEnv_pointer env, jclass type, jlong handle)
{
    (void)env;
    (void)type;
    MODEL(destroy)((effc_model *)(intptr_t)handle);
}

jstring METHOD(nativeMessage)(JNIEnv_pointer env, jclass type, jint status);
jstring METHOD(nativeMessage)(JNIEnv_pointer env, jclass type, jint status)
{
    (void)type;
    return jni_new_string(env, effc_status_message((effc_status)status));
}
