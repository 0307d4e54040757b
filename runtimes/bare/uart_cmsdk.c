/* uart_cmsdk.c - the wire of a board as a serial port: UART 0 of Arm's Cortex-M System Design Kit, as on
 * the MPS2 boards. Arm DDI 0479, 4.3. For another board replace these three functions.
 */
#include "port.h"

#define REGISTER(address) (*(volatile uint32_t *)(address))
#define UART_DATA REGISTER(0x40004000u)
#define UART_STATE REGISTER(0x40004004u)
#define UART_CTRL REGISTER(0x40004008u)
#define UART_BAUDDIV REGISTER(0x40004010u)

enum {
    STATE_TX_FULL = 1,
    STATE_RX_FULL = 2,
    CTRL_TX_AND_RX = 3,
    BAUDDIV = 25000000 / 115200, /* of the peripherals' clock */
};

static void start(void)
{
    if (UART_CTRL == 0) {
        UART_BAUDDIV = BAUDDIV;
        UART_CTRL = CTRL_TX_AND_RX;
    }
}

void port_read(void *data, uint32_t bytes)
{
    start();
    for (uint8_t *to = data; bytes > 0; bytes--) {
        while (!(UART_STATE & STATE_RX_FULL)) {
        }
        *to++ = (uint8_t)UART_DATA;
    }
}

void port_write(const void *data, uint32_t bytes)
{
    start();
    for (const uint8_t *from = data; bytes > 0; bytes--) {
        while (UART_STATE & STATE_TX_FULL) {
        }
        UART_DATA = *from++;
    }
}

/* There is nothing to return to: the monitor starts again. */
void port_exit(int code)
{
    (void)code;
    for (;;)
        monitor_main();
}
