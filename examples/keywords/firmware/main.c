/* main.c - spots a keyword in one second of recorded sound.
 *
 * The recording is in flash (sound.S). A product would take it from a microphone; everything behind
 * that is the same. Memory: one arena of the model's size, the features, no heap.
 */
#include <stdint.h>

#include "features.h"
#include "keywords.h" /* written by effc */
#include "semihosting.h"

_Static_assert(keywords_INPUT_0_ELEMENTS == FEATURE_FRAMES * FEATURE_BANDS, "another model");

extern const int16_t sound[];

static const char *const names[] = {"yes", "no", "stop", "go", "other"};
enum { CLASSES = sizeof names / sizeof names[0] };
_Static_assert(keywords_OUTPUT_0_ELEMENTS == CLASSES, "another model");

static float features[FEATURE_FRAMES * FEATURE_BANDS];
static float probabilities[CLASSES];
static _Alignas(keywords_ARENA_ALIGNMENT) uint8_t arena[keywords_ARENA_BYTES];

int main(void)
{
    compute_features(sound, features);
    const void *inputs[] = {features};
    void *outputs[] = {probabilities};
    if (keywords_run(inputs, outputs, arena) != keywords_OK)
        return 1;
    int best = 0;
    for (int i = 0; i < CLASSES; i++) {
        print(names[i]);
        print(": ");
        print_number((int)(probabilities[i] * 100.0f + 0.5f));
        print(" %\n");
        if (probabilities[i] > probabilities[best])
            best = i;
    }
    print("heard: ");
    print(names[best]);
    print("\n");
    return 0;
}
