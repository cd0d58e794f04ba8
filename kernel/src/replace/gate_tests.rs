//! Tests of the gate with real threads; `tests/loom.rs` has it in every order.

use super::gate::Gate;
use crate::task::now;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

#[test]
fn nobody_is_inside_while_it_is_closed() {
    let gate = Gate::default();
    let (inside, stop) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    let guard = gate.enter();
                    inside.fetch_add(1, Ordering::Relaxed);
                    thread::yield_now();
                    inside.fetch_sub(1, Ordering::Relaxed);
                    drop(guard);
                }
            });
        }
        for round in 0..200 {
            assert!(gate.close(now() + 10_000_000_000));
            for _ in 0..round % 7 {
                assert_eq!(inside.load(Ordering::Relaxed), 0);
                thread::yield_now();
            }
            gate.open();
        }
        stop.store(true, Ordering::Relaxed);
    });
}

#[test]
fn who_does_not_come_out_keeps_it_open() {
    let gate = Gate::default();
    let guard = gate.enter();
    assert!(!gate.try_close());
    assert!(!gate.close(now() + 1_000_000));
    drop(gate.enter());
    drop(guard);
    assert!(gate.try_close());
    gate.open();
}
