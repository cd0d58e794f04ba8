//! From the kernel into the app: stack, thread-locals, arguments, then std's own start.

use crate::boot::{self, EntryKind};
use crate::cpu::smp;
use crate::devices::control;
use crate::log;
use crate::memory::heap;
use crate::memory::workspace::Workspace;
use crate::replace::adopt;
use crate::task::sched;
use crate::xen::console::println;
use crate::xen::hypercall::ShutdownReason;
use crate::xen::{Committed, shared_info};
use alloc::boxed::Box;
use alloc::vec::Vec;
use core::alloc::Layout;
use core::ffi::c_char;
use core::ptr::NonNull;

unsafe extern "C" {
    /// std's start for this target: sets up arguments and calls the app's main.
    fn runtime_entry(argc: i32, argv: *const *const c_char, env: *const *const c_char) -> !;
}

unsafe extern "Rust" {
    /// The runtime crate's start, before main: sets the panic hook.
    safe fn segue_runtime_start();
    /// The runtime crate's part of the probation: waits for its end. Called after the commit.
    pub(crate) safe fn segue_runtime_probation();
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
    let Some(tls) = Tls::new() else {
        println!("segue: start failed: too little memory for thread-local variables");
        crate::end::end(ShutdownReason::Poweroff)
    };
    sched::become_main(tls);
    crate::abi::open_console();
    log::start();
    segue_runtime_start();
    if Committed::get().is_none() {
        adopt::started();
    }
    if Committed::get().is_none() && !boot::wants_trial() {
        adopt::commit();
    }
    if let Some(token) = Committed::get() {
        x86_64::instructions::interrupts::enable();
        if boot::machine().entry != EntryKind::Handover {
            println!(
                "segue: main start_us={}",
                shared_info::elapsed_since(entry_tsc) / 1000
            );
            control::start(token);
            smp::start_others_beside(token, entry_tsc);
        }
    }
    let (argv, env) = (arguments(), environment());
    // SAFETY: both are NULL-terminated arrays of C strings that live for ever.
    unsafe { runtime_entry(argv.len() as i32 - 1, argv.as_ptr(), env.as_ptr()) }
}

fn c_string(text: &str) -> *const c_char {
    let bytes: Vec<u8> = text.bytes().chain([0]).collect();
    Box::leak(bytes.into_boxed_slice()).as_ptr().cast()
}

fn c_strings<'a>(texts: impl Iterator<Item = &'a str>) -> &'static [*const c_char] {
    let pointers: Vec<*const c_char> = texts.map(c_string).chain([core::ptr::null()]).collect();
    Box::leak(pointers.into_boxed_slice())
}

/// The image's name, then what stands after `--`.
fn arguments() -> &'static [*const c_char] {
    let name = boot::ident();
    let name = name.as_ref().map_or("app", |i| i.name.as_str());
    c_strings([name].into_iter().chain(boot::machine().cmdline.args()))
}

/// `NAME=VALUE` for each `segue.env.NAME=VALUE`, and the stack size of std's threads: all of a
/// stack is there from the start, so std's own default of 1 MiB would be dear.
fn environment() -> &'static [*const c_char] {
    // std takes the last one said.
    c_strings(
        ["RUST_MIN_STACK=262144"]
            .into_iter()
            .chain(boot::machine().cmdline.environment()),
    )
}

/// A block of thread-local variables (System V ABI, x86-64 supplement: TLS variant II; FS points
/// behind the variables, at a word that holds its own address).
#[derive(Debug)]
pub struct Tls {
    block: NonNull<u8>,
    layout: Layout,
    pointer: u64,
}

// SAFETY: memory of its own; what is in it belongs to the thread it was made for.
unsafe impl Send for Tls {}

impl Tls {
    /// A fresh block; `None` without memory.
    #[must_use]
    pub fn new() -> Option<Self> {
        unsafe extern "C" {
            static __tls_start: u8;
            static __tls_file_end: u8;
            static __tls_end: u8;
        }
        let start = &raw const __tls_start;
        let file = (&raw const __tls_file_end).addr() - start.addr();
        let size = ((&raw const __tls_end).addr() - start.addr()).next_multiple_of(64);
        let layout = Layout::from_size_align(size + 64, 64).ok()?;
        let block = NonNull::new(heap::alloc(layout))?;
        // SAFETY: the block has room for the template and a word behind `size`; the template is
        // initialised data of this image.
        let pointer = unsafe {
            block.write_bytes(0, layout.size());
            core::ptr::copy_nonoverlapping(start, block.as_ptr(), file);
            let pointer = block.add(size).expose_provenance().get() as u64;
            block.add(size).cast::<u64>().write(pointer);
            pointer
        };
        Some(Self {
            block,
            layout,
            pointer,
        })
    }

    /// What FS has to point at.
    #[must_use]
    pub fn pointer(&self) -> u64 {
        self.pointer
    }
}

impl Drop for Tls {
    fn drop(&mut self) {
        // SAFETY: from the heap, with this layout; the thread it was for is gone.
        unsafe { heap::dealloc(self.block.as_ptr(), self.layout) };
    }
}
