//! Devices that go from image to image as they are: which there are, and whose.
//!
//! A device that can go on has its block of granted frames, at the end of which a few are private:
//! in them its driver writes what the next image has to know. So who hands devices over, and who has
//! no driver for them and hands them on, needs no more than what is here.

use crate::memory::Extent;

/// A network device; its driver says what is in its private frames (`netfront/private.rs`).
pub const NET: u32 = 1;

/// A device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Device {
    /// Its frames, which other domains may use,
    pub block: Extent,
    /// but for so many at the end.
    pub private: u64,
    /// What kind of device it is.
    pub kind: u32,
    /// Version of what is in the private frames.
    pub version: u32,
    /// Its ports; 0 for none.
    pub ports: [u32; 2],
}

impl Device {
    /// Number of words.
    pub const WORDS: usize = 7;

    /// As words, for the record.
    #[must_use]
    pub fn words(&self) -> [u64; Self::WORDS] {
        [
            self.block.start().as_u64(),
            self.block.end(),
            self.private,
            self.kind.into(),
            self.version.into(),
            self.ports[0].into(),
            self.ports[1].into(),
        ]
    }

    /// From [`words`](Self::words); `None` if they make no sense.
    #[must_use]
    pub fn from_words(words: [u64; Self::WORDS]) -> Option<Self> {
        let [start, end, private, kind, version, a, b] = words;
        let block = Extent::from_bounds(start, end)?;
        let device = Self {
            block,
            private,
            kind: kind.try_into().ok()?,
            version: version.try_into().ok()?,
            ports: [a.try_into().ok()?, b.try_into().ok()?],
        };
        device.private_frames().map(|_| device)
    }

    /// The frames that nobody else may use.
    #[must_use]
    pub fn private_frames(&self) -> Option<Extent> {
        let granted = self.block.frames().checked_sub(self.private)?;
        self.block
            .part(granted, self.private)
            .filter(|_| granted > 0)
    }

    /// Its ports.
    pub fn ports(&self) -> impl Iterator<Item = u32> + use<> {
        self.ports.into_iter().filter(|port| *port != 0)
    }
}

#[cfg(target_os = "hermit")]
pub use shared::{add, forget, going_on, offer, offered, remove, take};

#[cfg(target_os = "hermit")]
mod shared {
    use super::Device;
    use crate::memory::Extent;
    use crate::sync::Lock;
    use crate::xen::console::println;
    use crate::xen::hypercall::Port;
    use crate::xen::{Committed, events, grant};
    use arrayvec::ArrayVec;

    /// All devices.
    pub type List = ArrayVec<Device, { grant::MAX_BLOCKS }>;

    /// Says whether a device can go on: what it has is really its own.
    pub type Audit = fn(Committed, &Device) -> Result<(), &'static str>;

    /// Those of this image's drivers that could go on.
    static OURS: Lock<ArrayVec<(Device, Audit), { grant::MAX_BLOCKS }>> =
        Lock::new(ArrayVec::new_const());
    /// Those that came with the switch, and no driver has taken yet.
    static OFFERED: Lock<List> = Lock::new(ArrayVec::new_const());

    /// A driver has a device that can go on in the next image, if it comes to rest before.
    pub fn add(device: Device, audit: Audit) {
        // One that finds no room does not go on.
        let _ = OURS.lock().try_push((device, audit));
    }

    /// It can't any more.
    pub fn remove(block: Extent) {
        OURS.lock().retain(|(device, _)| device.block != block);
    }

    /// What came with a switch. Called once, on trial.
    pub fn offer(devices: List) {
        *OFFERED.lock() = devices;
    }

    /// What came and no driver has taken yet.
    #[must_use]
    pub fn offered() -> List {
        OFFERED.lock().clone()
    }

    /// Takes a device, once; after the commit.
    pub fn take(_: Committed, block: Extent) -> Option<Device> {
        let mut offered = OFFERED.lock();
        let at = offered.iter().position(|d| d.block == block)?;
        Some(offered.remove(at))
    }

    /// A device that was taken can't go on here: it is nobody's, and is connected anew.
    pub fn forget(token: Committed, device: &Device) {
        for port in device.ports() {
            events::close(token, Port(port));
        }
        grant::abandon(token, device.block);
    }

    /// What goes on in the next image. While no device comes or goes. Those of this image's drivers
    /// only if they can be brought to rest.
    pub fn going_on(token: Committed, at_rest: bool) -> List {
        let mut all = offered();
        if at_rest {
            let ours = OURS.lock().clone();
            for (device, audit) in &ours {
                // A driver has taken it just now.
                if all.iter().any(|other| other.block == device.block) {
                    continue;
                }
                match audit(token, device) {
                    Ok(()) => {
                        let _ = all.try_push(*device);
                    }
                    Err(why) => println!(
                        "segue: device at={:?} is connected anew reason=\"{why}\"",
                        device.block.start()
                    ),
                }
            }
        }
        all
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    proptest! {
        #[test]
        fn words_are_read_back_or_refused(words: [u64; Device::WORDS], small in 0u64..2000, frames in 1u64..1000, private in 0u64..1200) {
            if let Some(device) = Device::from_words(words) {
                prop_assert_eq!(device.words(), words);
            }
            let [_, _, _, kind, version, a, b] = words.map(|w| w & 0xffff_ffff);
            let words = [small, small + frames, private, kind, version, a, b];
            match Device::from_words(words) {
                Some(device) => {
                    prop_assert_eq!(device.words(), words);
                    let own = device.private_frames().unwrap();
                    prop_assert!(own.end() == small + frames && own.start() > device.block.start());
                    prop_assert_eq!(device.ports().count(), usize::from(a != 0) + usize::from(b != 0));
                }
                // All of it granted, or none.
                None => prop_assert!(private == 0 || private >= frames),
            }
        }
    }
}
