/* The recording: a WAV file of 8 kHz, 16 bits, one channel, behind its header. */
    .section .rodata.sound, "a"
    .global sound
    .balign 4
sound:
    .incbin SOUND, 44
    .section .note.GNU-stack, "", %progbits
