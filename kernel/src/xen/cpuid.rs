//! Is this Xen, and which? (public/arch-x86/cpuid.h)
//!
//! CPUID always exits to the hypervisor: everything here runs once, at first boot, and is handed
//! over afterwards.

use core::arch::x86_64::__cpuid_count;

/// What CPUID says of the hypervisor.
#[derive(Clone, Copy, Debug)]
pub struct XenCpuid {
    /// Major and minor version.
    pub version: (u16, u16),
    /// Hypercalls are made with VMMCALL (AMD) and not VMCALL (Intel).
    pub vmmcall: bool,
}

/// Looks for Xen's signature from leaf 0x40000000 on (other interfaces may stand first).
#[must_use]
pub fn detect() -> Option<XenCpuid> {
    let base = (0x4000_0000..0x4001_0000).step_by(0x100).find(|leaf| {
        let id = __cpuid_count(*leaf, 0);
        (id.ebx, id.ecx, id.edx) == (0x566e_6558, 0x6558_4d4d, 0x4d4d_566e) // "XenVMMXenVMM"
    })?;
    let version = __cpuid_count(base + 1, 0).eax;
    Some(XenCpuid {
        version: ((version >> 16) as u16, version as u16),
        vmmcall: is_amd(),
    })
}

fn is_amd() -> bool {
    let id = __cpuid_count(0, 0);
    // "AuthenticAMD" and "HygonGenuine" have VMMCALL, the others VMCALL.
    matches!(id.ebx, 0x6874_7541 | 0x6f67_7948)
}
