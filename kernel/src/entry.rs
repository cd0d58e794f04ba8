//! From the kernel into the app: stack, thread-locals, arguments, then std's own start.

use crate::boot::{self, EntryKind};
use crate::memory::workspace::Workspace;
use crate::replace::adopt;
use crate::xen::console::println;
use crate::xen::{Committed, shared_info};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::ffi::c_char;
use x86_64::VirtAddr;
use x86_64::registers::model_specific::FsBase;

unsafe extern "C" {
    /// std's start for this target: sets up arguments and calls the app's main.
    fn runtime_entry(argc: i32, argv: *const *const c_char, env: *const *const c_char) -> !;
}

unsafe extern "Rust" {
    /// The runtime crate's start, before main: sets the panic hook.
    safe fn segue_runtime_start();
}

/// Leaves the boot stack for the main stack and goes on to main.
///
/// # Safety
/// The main stack is mapped and unused.
pub unsafe fn on_main_stack(workspace: &Workspace, entry_tsc: u64) -> ! {
    let top = workspace.main_stack().end_addr();
    // SAFETY: the caller's promise; nothing on the old stack is used again.
    unsafe {
        core::arch::asm!(
            "mov rsp, {top}", "xor ebp, ebp", "call {main}", "ud2",
            top = in(reg) top, main = sym main, in("rdi") entry_tsc, options(noreturn),
        )
    }
}

/// Runs the app; `entry_tsc` is when this image got control.
pub(crate) extern "C" fn main(entry_tsc: u64) -> ! {
    install_tls();
    segue_runtime_start();
    if Committed::get().is_none() {
        adopt::started();
    }
    if Committed::get().is_none() && !boot::wants_trial() {
        adopt::commit();
    }
    if Committed::get().is_some() {
        x86_64::instructions::interrupts::enable();
        if boot::machine().entry != EntryKind::Handover {
            println!(
                "segue: main start_us={}",
                shared_info::elapsed_since(entry_tsc) / 1000
            );
        }
    }
    let argv = arguments();
    // SAFETY: `argv` is a NULL-terminated array of C strings that live for ever.
    unsafe {
        runtime_entry(
            argv.len() as i32 - 1,
            argv.as_ptr(),
            [core::ptr::null()].as_ptr(),
        )
    }
}

/// The image's name, then what stands after `--`.
fn arguments() -> &'static [*const c_char] {
    let c_string = |text: &str| -> *const c_char {
        let bytes: Vec<u8> = text.bytes().chain([0]).collect();
        Box::leak(bytes.into_boxed_slice()).as_ptr().cast()
    };
    let name = boot::ident();
    let name = name.as_ref().map_or("app", |i| i.name.as_str());
    let argv: Vec<*const c_char> = [name]
        .into_iter()
        .chain(boot::machine().cmdline.args())
        .map(c_string)
        .chain([core::ptr::null()])
        .collect();
    Box::leak(argv.into_boxed_slice())
}

/// Gives the calling vCPU a fresh block of thread-local variables (System V ABI, x86-64 supplement:
/// TLS variant II; FS points behind the block, at a word that holds its own address).
pub fn install_tls() {
    unsafe extern "C" {
        static __tls_start: u8;
        static __tls_file_end: u8;
        static __tls_end: u8;
    }
    let start = &raw const __tls_start;
    let file = (&raw const __tls_file_end).addr() - start.addr();
    let size = ((&raw const __tls_end).addr() - start.addr()).next_multiple_of(64);
    #[repr(C, align(64))]
    #[derive(Clone, Copy)]
    struct Line([u8; 64]);
    let block = Box::leak(alloc::vec![Line([0; 64]); size / 64 + 1].into_boxed_slice());
    let bytes = block.as_mut_ptr().cast::<u8>();
    // SAFETY: the block has room for the template and a word behind `size`; the template is
    // initialised data of this image.
    unsafe {
        core::ptr::copy_nonoverlapping(start, bytes, file);
        let pointer = bytes.add(size);
        pointer
            .cast::<u64>()
            .write(pointer.expose_provenance() as u64);
        FsBase::write(VirtAddr::from_ptr(pointer));
    }
}
