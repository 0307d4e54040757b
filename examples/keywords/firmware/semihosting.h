/* semihosting.h - text for the debugger or emulator (Semihosting for AArch32, Arm, release 3.0). */
#ifndef SEMIHOSTING_H
#define SEMIHOSTING_H

void print(const char *text);
void print_number(int number);

/* Ends the program; 0 is success. */
_Noreturn void leave(int status);

#endif
