//! The processor: descriptor tables, faults, interrupts, the local APIC, the other vCPUs.

pub mod apic;
pub mod fault;
pub mod percpu;
pub mod smp;
pub mod tables;

use x86_64::registers::control::{Cr0, Cr0Flags, Cr4, Cr4Flags};
use x86_64::registers::xcontrol::{XCr0, XCr0Flags};

/// What of the processor is used beyond plain x86-64; found once at first boot (CPUID exits) and
/// handed over.
#[derive(Clone, Copy, Debug, Default)]
pub struct Features {
    /// Bytes that XSAVE needs for what XCR0 enables; 512 with `xcr0` 0 means FXSAVE only.
    pub xsave_size: u32,
    /// State components enabled in XCR0; 0 without XSAVE.
    pub xcr0: u64,
    /// The APIC can be in x2APIC mode.
    pub x2apic: bool,
}

impl Features {
    /// Asks CPUID (Intel SDM 1 §13.2).
    #[must_use]
    pub fn detect() -> Self {
        use core::arch::x86_64::__cpuid_count;
        let one = __cpuid_count(1, 0);
        let x2apic = one.ecx & 1 << 21 != 0;
        if one.ecx & 1 << 26 == 0 {
            return Self {
                xsave_size: 512,
                xcr0: 0,
                x2apic,
            };
        }
        let d = __cpuid_count(0xd, 0);
        let supported = u64::from(d.eax) | u64::from(d.edx) << 32;
        // x87, SSE, AVX, AVX-512: what std's feature detection lets code use.
        let mut xcr0 = supported & 0b111;
        if supported & 0xe0 == 0xe0 && xcr0 == 0b111 {
            xcr0 |= 0xe0;
        }
        // ECX: the size for everything supported, an upper bound without a write to XCR0.
        Self {
            xsave_size: d.ecx,
            xcr0,
            x2apic,
        }
    }

    /// Enables on the calling vCPU what the image is compiled for and may find by CPUID.
    pub fn enable(self) {
        // SAFETY: SSE exists on x86-64; OSFXSR says that interrupts save its state, which they do.
        unsafe {
            Cr0::update(|f| {
                f.remove(Cr0Flags::EMULATE_COPROCESSOR | Cr0Flags::TASK_SWITCHED);
                f.insert(
                    Cr0Flags::MONITOR_COPROCESSOR
                        | Cr0Flags::NUMERIC_ERROR
                        | Cr0Flags::WRITE_PROTECT,
                );
            });
            Cr4::update(|f| {
                f.insert(Cr4Flags::OSFXSR | Cr4Flags::OSXMMEXCPT_ENABLE);
                if self.xcr0 != 0 {
                    f.insert(Cr4Flags::OSXSAVE);
                }
            });
        }
        if self.xcr0 != 0 {
            // SAFETY: the components are supported and consistent (x87 and SSE always on).
            unsafe { XCr0::write(XCr0Flags::from_bits_truncate(self.xcr0)) };
        }
    }
}
