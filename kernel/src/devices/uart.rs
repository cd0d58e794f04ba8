//! COM1: early output and panics on HVM. Each byte is a trip to the device model.

use crate::cpu::percpu;
use crate::sync::Lock;
use crate::xen::Committed;
use core::sync::atomic::{AtomicBool, Ordering};
use uart_16550::backend::PioBackend;
use uart_16550::{Config, Uart16550};

const COM1: u16 = 0x3f8;

static UART: Lock<Option<Uart16550<PioBackend>>> = Lock::new(None);
static PRESENT: AtomicBool = AtomicBool::new(true);

/// Says whether this machine has a COM1 (PVH has none).
pub fn set_present(present: bool) {
    PRESENT.store(present, Ordering::Relaxed);
}

/// Writes bytes if there is a UART; set up at the first.
pub fn write(_: Committed, bytes: &[u8]) {
    if !PRESENT.load(Ordering::Relaxed) {
        return;
    }
    let Some(mut guard) = UART.try_lock() else {
        return;
    };
    if guard.is_none() {
        // SAFETY: COM1 is the UART's, nothing else in this image touches it.
        *guard = unsafe { Uart16550::new_port(COM1) }.ok();
        if let Some(uart) = guard.as_mut() {
            let _ = uart.init(Config::default());
        }
    }
    if let Some(uart) = guard.as_mut() {
        for _ in bytes {
            percpu::this().count_exit();
        }
        uart.send_bytes_exact(bytes);
    }
}
