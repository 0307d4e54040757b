/* jni_abi.h - the part of the Java Native Interface that model_jni.c uses, so that neither a JDK
 * nor an NDK is needed to compile it.
 *
 * An environment points to a table of functions. Their places are part of the interface's binary
 * contract (Java Native Interface Specification, chapter 4, "Interface Function Table").
 *
 * SPDX-License-Identifier: Apache-2.0
 */
#ifndef EFFC_JNI_ABI_H
#define EFFC_JNI_ABI_H

#include <stdint.h>

typedef int32_t jint;
typedef int64_t jlong;
typedef jint jsize;
typedef void *jobject;
typedef jobject jclass, jstring, jobjectArray, jlongArray;

typedef const void *const *const *JNIEnv_pointer; /* JNIEnv * */

enum {
    JNI_DELETE_LOCAL_REF = 23,
    JNI_NEW_STRING_UTF = 167,
    JNI_GET_OBJECT_ARRAY_ELEMENT = 173,
    JNI_SET_LONG_ARRAY_REGION = 212,
    JNI_GET_DIRECT_BUFFER_ADDRESS = 230,
    JNI_GET_DIRECT_BUFFER_CAPACITY = 231
};

static inline void jni_delete_local_ref(JNIEnv_pointer env, jobject object)
{
    ((void (*)(JNIEnv_pointer, jobject))(*env)[JNI_DELETE_LOCAL_REF])(env, object);
}

static inline jstring jni_new_string(JNIEnv_pointer env, const char *text)
{
    return ((jstring(*)(JNIEnv_pointer, const char *))(*env)[JNI_NEW_STRING_UTF])(env, text);
}

static inline jobject jni_element(JNIEnv_pointer env, jobjectArray array, jsize index)
{
    return ((jobject(*)(JNIEnv_pointer, jobjectArray, jsize))(
        *env)[JNI_GET_OBJECT_ARRAY_ELEMENT])(env, array, index);
}

static inline void jni_set_long(JNIEnv_pointer env, jlongArray array, jlong value)
{
    ((void (*)(JNIEnv_pointer, jlongArray, jsize, jsize, const jlong *))(
        *env)[JNI_SET_LONG_ARRAY_REGION])(env, array, 0, 1, &value);
}

static inline void *jni_buffer_address(JNIEnv_pointer env, jobject buffer)
{
    return ((void *(*)(JNIEnv_pointer, jobject))(*env)[JNI_GET_DIRECT_BUFFER_ADDRESS])(env, buffer);
}

static inline jlong jni_buffer_bytes(JNIEnv_pointer env, jobject buffer)
{
    return ((jlong(*)(JNIEnv_pointer, jobject))(*env)[JNI_GET_DIRECT_BUFFER_CAPACITY])(env, buffer);
}

#endif
