/* features.h - log-mel features of one second of sound, see ../features.py. */
#ifndef FEATURES_H
#define FEATURES_H

#include <stdint.h>

enum { SOUND_SAMPLES = 8000, FEATURE_FRAMES = 48, FEATURE_BANDS = 16 };

/* Sound at 8 kHz to FEATURE_FRAMES * FEATURE_BANDS numbers, frame by frame. */
void compute_features(const int16_t *sound, float *features);

#endif
