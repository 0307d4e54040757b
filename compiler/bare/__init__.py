"""Libraries for processors without an operating system: static archives for firmware.

``toolchain`` compiles, ``codegen`` prints the C of a program, ``archive`` links and checks,
``stack`` bounds the stack, ``budget`` says what does not fit, ``monitor`` makes the program that
emulated boards run.
"""
