#ifdef __APPLE__
    .section __TEXT,__const
    .globl _toy_weights
    .private_extern _toy_weights
    .balign 64
_toy_weights:
    .incbin "toy.weights"
#else
    .section .rodata.toy_weights, "a", %progbits
    .global toy_weights
    .hidden toy_weights
    .type toy_weights, %object
    .balign 64
toy_weights:
    .incbin "toy.weights"
    .size toy_weights, . - toy_weights
    .section .note.GNU-stack, "", %progbits
#endif
