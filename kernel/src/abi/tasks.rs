//! Threads, the end, and what there is of a process.

use crate::abi::answer_int;
use crate::abi::errno::Errno;
use crate::end;
use crate::task::{self, Options, Priority, Tid};
use crate::xen::hypercall::ShutdownReason;

type Function = extern "C" fn(usize);

fn spawn(
    function: Function,
    argument: usize,
    priority: u8,
    stack: usize,
    core: isize,
) -> Result<Tid, Errno> {
    let vcpu = match core {
        ..0 => None,
        n => Some(u32::try_from(n).map_err(|_| Errno::EINVAL)?),
    };
    let options = Options {
        stack,
        priority: Priority::from_abi(priority),
        vcpu,
    };
    task::spawn_app(options, move || function(argument))
}

/// 0 where no thread was started.
#[unsafe(no_mangle)]
extern "C" fn sys_spawn2(
    function: Function,
    argument: usize,
    priority: u8,
    stack: usize,
    core: isize,
) -> Tid {
    spawn(function, argument, priority, stack, core).unwrap_or_else(|e| {
        task::set_errno(e);
        0
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_spawn(
    id: *mut Tid,
    function: Function,
    argument: usize,
    priority: u8,
    core: isize,
) -> i32 {
    let stack = Options::default().stack;
    let spawned = spawn(function, argument, priority, stack, core);
    if let Ok(tid) = spawned
        && !id.is_null()
    {
        // SAFETY: the caller passes a place for a thread's number, or NULL.
        unsafe { id.write(tid) };
    }
    answer_int(spawned.map(|_| 0))
}

#[unsafe(no_mangle)]
extern "C" fn sys_join(tid: Tid) -> i32 {
    answer_int(task::join(tid).map(|()| 0))
}

#[unsafe(no_mangle)]
extern "C" fn sys_yield() {
    task::yield_now();
}

#[unsafe(no_mangle)]
extern "C" fn sys_get_priority() -> u8 {
    task::priority().to_abi()
}

#[unsafe(no_mangle)]
extern "C" fn sys_set_priority(tid: Tid, priority: u8) {
    if let Err(e) = task::set_priority(tid, Priority::from_abi(priority)) {
        task::set_errno(e);
    }
}

#[unsafe(no_mangle)]
extern "C" fn sys_getpid() -> i32 {
    1
}

#[unsafe(no_mangle)]
extern "C" fn sys_available_parallelism() -> usize {
    crate::cpu::smp::parallelism() as usize
}

#[unsafe(no_mangle)]
extern "C" fn sys_get_errno() -> i32 {
    task::errno()
}

#[unsafe(no_mangle)]
extern "C" fn sys_errno() -> i32 {
    task::errno()
}

#[unsafe(no_mangle)]
extern "C" fn sys_exit(status: i32) -> ! {
    end::exit(status)
}

#[unsafe(no_mangle)]
extern "C" fn sys_abort() -> ! {
    end::end(ShutdownReason::Crash)
}
