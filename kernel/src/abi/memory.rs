//! The heap.

use crate::memory::heap;
use core::alloc::Layout;

fn layout(size: usize, align: usize) -> Option<Layout> {
    Layout::from_size_align(size.max(1), align).ok()
}

#[unsafe(no_mangle)]
extern "C" fn sys_malloc(size: usize, align: usize) -> *mut u8 {
    layout(size, align).map_or(core::ptr::null_mut(), heap::alloc)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_free(ptr: *mut u8, size: usize, align: usize) {
    if let Some(layout) = layout(size, align) {
        // SAFETY: std passes what it got from `sys_malloc`, with the same layout.
        unsafe { heap::dealloc(ptr, layout) };
    }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_realloc(ptr: *mut u8, size: usize, align: usize, new: usize) -> *mut u8 {
    match layout(size, align) {
        // SAFETY: as above; `new` is not 0 (GlobalAlloc's rule).
        Some(layout) => unsafe { heap::realloc(ptr, layout, new.max(1)) },
        None => core::ptr::null_mut(),
    }
}

#[unsafe(no_mangle)]
extern "C" fn sys_getpagesize() -> i32 {
    crate::memory::PAGE_SIZE as i32
}
