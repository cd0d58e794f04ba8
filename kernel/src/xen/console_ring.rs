//! The paravirtual console's ring (public/io/console.h) as plain logic over shared memory.
//!
//! The backend is not trusted. Indices are taken modulo the ring's size wherever they lead, so
//! nothing outside of it is touched; output that it claims to have taken before it was written
//! counts as not taken, and input of more than the ring holds as none.

use core::sync::atomic::{AtomicU8, AtomicU32, Ordering, fence};

/// Bytes of input that the ring holds.
pub const IN_SIZE: u32 = 1024;
/// Bytes of output that the ring holds.
pub const OUT_SIZE: u32 = 2048;

/// `struct xencons_interface`.
#[repr(C)]
#[derive(Debug)]
pub struct Ring {
    input: [AtomicU8; IN_SIZE as usize],
    output: [AtomicU8; OUT_SIZE as usize],
    in_cons: AtomicU32,
    in_prod: AtomicU32,
    out_cons: AtomicU32,
    out_prod: AtomicU32,
}

const _: () = assert!(core::mem::offset_of!(Ring, out_prod) == 3084);

impl Ring {
    /// Bytes of output that the backend has not taken; a backend that lies counts as full.
    pub fn used(&self) -> u32 {
        let cons = self.out_cons.load(Ordering::Acquire);
        let prod = self.out_prod.load(Ordering::Relaxed);
        prod.wrapping_sub(cons).min(OUT_SIZE)
    }

    /// Puts as much output as there is room for; says how much that was.
    pub fn put(&self, bytes: &[u8]) -> usize {
        let room = (OUT_SIZE - self.used()) as usize;
        let now = bytes.get(..room).unwrap_or(bytes);
        let mut prod = self.out_prod.load(Ordering::Relaxed);
        for byte in now {
            self.output[(prod % OUT_SIZE) as usize].store(*byte, Ordering::Relaxed);
            prod = prod.wrapping_add(1);
        }
        fence(Ordering::Release);
        self.out_prod.store(prod, Ordering::Release);
        now.len()
    }

    /// Bytes of input that are there; a backend that lies: what it says is there is not looked at.
    pub fn typed(&self) -> u32 {
        let cons = self.in_cons.load(Ordering::Relaxed);
        let there = self.in_prod.load(Ordering::Acquire).wrapping_sub(cons);
        if there > IN_SIZE { 0 } else { there }
    }

    /// Takes input that is there; says how many bytes.
    pub fn take(&self, buf: &mut [u8]) -> usize {
        let count = buf.len().min(self.typed() as usize);
        let mut cons = self.in_cons.load(Ordering::Relaxed);
        for (to, _) in buf.iter_mut().zip(0..count) {
            *to = self.input[(cons % IN_SIZE) as usize].load(Ordering::Relaxed);
            cons = cons.wrapping_add(1);
        }
        fence(Ordering::AcqRel);
        self.in_cons.store(cons, Ordering::Release);
        count
    }
}

/// The backend's side, for tests and fuzz targets.
#[cfg(any(test, feature = "fuzzing"))]
#[doc(hidden)]
#[allow(missing_docs, reason = "not part of the kernel")]
impl Ring {
    pub fn blank() -> Self {
        Self {
            input: [const { AtomicU8::new(0) }; IN_SIZE as usize],
            output: [const { AtomicU8::new(0) }; OUT_SIZE as usize],
            in_cons: AtomicU32::new(0),
            in_prod: AtomicU32::new(0),
            out_cons: AtomicU32::new(0),
            out_prod: AtomicU32::new(0),
        }
    }

    /// In the order in which they lie in the page.
    pub fn indices(&self) -> [&AtomicU32; 4] {
        [&self.in_cons, &self.in_prod, &self.out_cons, &self.out_prod]
    }

    /// As a backend that keeps to the protocol: takes output.
    pub fn take_output(&self, most: usize) -> Vec<u8> {
        let prod = self.out_prod.load(Ordering::Acquire);
        let mut cons = self.out_cons.load(Ordering::Relaxed);
        let mut bytes = Vec::new();
        while cons != prod && bytes.len() < most {
            bytes.push(self.output[(cons % OUT_SIZE) as usize].load(Ordering::Relaxed));
            cons = cons.wrapping_add(1);
        }
        self.out_cons.store(cons, Ordering::Release);
        bytes
    }

    /// As a backend that keeps to the protocol: gives input as far as there is room.
    pub fn put_input(&self, bytes: &[u8]) -> usize {
        let cons = self.in_cons.load(Ordering::Acquire);
        let mut prod = self.in_prod.load(Ordering::Relaxed);
        let room = IN_SIZE.saturating_sub(prod.wrapping_sub(cons)) as usize;
        let now = bytes.get(..room).unwrap_or(bytes);
        for byte in now {
            self.input[(prod % IN_SIZE) as usize].store(*byte, Ordering::Relaxed);
            prod = prod.wrapping_add(1);
        }
        self.in_prod.store(prod, Ordering::Release);
        now.len()
    }
}

#[cfg(any(test, feature = "fuzzing"))]
use alloc::vec::Vec;

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        /// Bytes come out as they went in, both ways, over the rings' ends and the indices'.
        #[test]
        fn bytes_are_carried(
            start in prop_oneof![Just(0u32), Just(u32::MAX - 100), any::<u32>()],
            chunks in proptest::collection::vec((0usize..3000, 0usize..3000), 1..40),
        ) {
            let ring = Ring::blank();
            for index in ring.indices() {
                index.store(start, Ordering::Relaxed);
            }
            let [mut sent, mut got, mut typed, mut read] = [0u8; 4];
            let from = |start: u8, len: usize| (0..len).map(|i| start.wrapping_add(i as u8)).collect::<Vec<u8>>();
            for (give, get) in chunks {
                let n = ring.put(&from(sent, give));
                sent = sent.wrapping_add(n as u8);
                let output = ring.take_output(get);
                prop_assert_eq!(&output, &from(got, output.len()));
                got = got.wrapping_add(output.len() as u8);
                let n = ring.put_input(&from(typed, give));
                typed = typed.wrapping_add(n as u8);
                let mut buf = vec![0; get];
                let n = ring.take(&mut buf);
                prop_assert_eq!(&buf[..n], &from(read, n)[..]);
                read = read.wrapping_add(n as u8);
            }
        }

        /// Indices that cannot be: nothing is read, nothing is written over.
        #[test]
        fn a_backend_that_lies_gets_nothing(cons: u32, prod: u32, len in 0usize..5000) {
            let ring = Ring::blank();
            let [in_cons, in_prod, out_cons, out_prod] = ring.indices();
            for (c, p) in [(in_cons, in_prod), (out_cons, out_prod)] {
                c.store(cons, Ordering::Relaxed);
                p.store(prod, Ordering::Relaxed);
            }
            let apart = prod.wrapping_sub(cons) as usize;
            let put = ring.put(&vec![1; len]);
            prop_assert_eq!(put, len.min((OUT_SIZE as usize).saturating_sub(apart)));
            let took = ring.take(&mut vec![0; len]);
            prop_assert_eq!(took, if apart > IN_SIZE as usize { 0 } else { apart.min(len) });
        }
    }
}
