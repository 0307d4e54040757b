#include "features.h"

#include "features_tables.h"

enum { FRAME = 256, HALF = FRAME / 2, HOP = 160 };

/* In-place Fourier transform of FRAME complex numbers, radix 2 (Cooley and Tukey, 1965). */
static void transform(float *re, float *im)
{
    for (int i = 1, j = 0; i < FRAME; i++) { /* bits reversed */
        int bit = HALF;
        for (; j & bit; bit >>= 1)
            j ^= bit;
        j |= bit;
        if (i < j) {
            float t = re[i];
            re[i] = re[j];
            re[j] = t;
        }
    }
    for (int size = 2; size <= FRAME; size *= 2) {
        int half = size / 2, step = FRAME / size;
        for (int start = 0; start < FRAME; start += size) {
            for (int k = 0; k < half; k++) {
                float c = cosine[k * step], s = sine[k * step];
                float *r0 = re + start + k, *i0 = im + start + k;
                float r = r0[half] * c + i0[half] * s, i = i0[half] * c - r0[half] * s;
                r0[half] = r0[0] - r;
                i0[half] = i0[0] - i;
                r0[0] += r;
                i0[0] += i;
            }
        }
    }
}

static float log2_of(float x)
{
    union {
        float number;
        uint32_t bits;
    } mantissa = {x};
    int exponent = (int)(mantissa.bits >> 23) - 127;
    mantissa.bits = (mantissa.bits & 0x7FFFFF) | 0x3F800000;
    float value = 0;
    for (int i = 4; i >= 0; i--)
        value = value * mantissa.number + log2_coefficients[i];
    return (float)exponent + value;
}

/* Sum of the power spectrum under a triangle. */
static float band_energy(const float *power, int band)
{
    int low = band_edges[band], peak = band_edges[band + 1], high = band_edges[band + 2];
    float sum = 0;
    for (int bin = low + 1; bin < high; bin++) {
        float weight = bin <= peak ? (float)(bin - low) / (float)(peak - low)
                                   : (float)(high - bin) / (float)(high - peak);
        sum += power[bin] * weight;
    }
    return sum;
}

void compute_features(const int16_t *sound, float *features)
{
    static float re[FRAME], im[FRAME];
    for (int frame = 0; frame < FEATURE_FRAMES; frame++) {
        for (int i = 0; i < FRAME; i++) {
            re[i] = (float)sound[frame * HOP + i] / 32768.0f * hann[i];
            im[i] = 0;
        }
        transform(re, im);
        for (int bin = 0; bin <= HALF; bin++)
            re[bin] = re[bin] * re[bin] + im[bin] * im[bin];
        for (int band = 0; band < FEATURE_BANDS; band++) {
            float value = log2_of(band_energy(re, band) + 1e-6f);
            features[frame * FEATURE_BANDS + band] = (value + 8.0f) / 8.0f;
        }
    }
}
