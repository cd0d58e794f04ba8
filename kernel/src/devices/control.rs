//! What the toolstack asks of the domain: `control/shutdown` (docs/misc/xenstore-paths.pandoc).
//!
//! A request is acknowledged by an empty string. One that is not acknowledged is refused: the
//! toolstack takes it back when its patience ends (`xl save`: "guest didn't acknowledge suspend,
//! cancelling request"), and the domain goes on. So `suspend` is refused: what Xen would restore
//! is not what the image was promised.

/// What the domain was asked to do.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Request {
    /// `poweroff`: end, with that reason.
    Poweroff,
    /// `reboot`: end, with that reason.
    Reboot,
    /// `halt`: end like a power-off.
    Halt,
}

/// What `control/shutdown` says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Control {
    /// A request.
    Request(Request),
    /// Something that is refused by not being acknowledged.
    Refused,
    /// Nothing.
    Nothing,
}

impl Control {
    /// From the node's value.
    #[must_use]
    pub fn parse(value: &[u8]) -> Self {
        match value {
            b"" => Self::Nothing,
            b"poweroff" => Self::Request(Request::Poweroff),
            b"reboot" => Self::Request(Request::Reboot),
            b"halt" => Self::Request(Request::Halt),
            _ => Self::Refused,
        }
    }
}

#[cfg(target_os = "hermit")]
pub use shared::{REQUESTED, requested};

#[cfg(target_os = "hermit")]
pub(super) use shared::{PATH, announce, changed};

#[cfg(target_os = "hermit")]
mod shared {
    use super::{Control, Request};
    use crate::sync::Lock;
    use crate::xen::console::println;
    use crate::xen::hypercall::ShutdownReason;
    use crate::xen::wait::WaitQueue;
    use crate::xen::xenstore::{self, Error, Transaction};

    pub(in super::super) const PATH: &str = "control/shutdown";

    impl Request {
        /// The reason to end with.
        #[must_use]
        pub fn reason(self) -> ShutdownReason {
            match self {
                Self::Poweroff | Self::Halt => ShutdownReason::Poweroff,
                Self::Reboot => ShutdownReason::Reboot,
            }
        }
    }

    static REQUEST: Lock<Option<Request>> = Lock::new(None);

    /// Woken when there is a request.
    pub static REQUESTED: WaitQueue = WaitQueue::new();

    /// The last request, if there was one.
    pub fn requested() -> Option<Request> {
        *REQUEST.lock()
    }

    /// Tells the toolstack what can be asked. It need not have made the nodes: then it does not
    /// want to know.
    pub(in super::super) fn announce() -> Result<(), Error> {
        let client = xenstore::client()?;
        for (name, value) in [("poweroff", b"1"), ("reboot", b"1"), ("suspend", b"0")] {
            let path = alloc::format!("control/feature-{name}");
            match client.write(Transaction::NONE, &path, value) {
                Ok(()) | Err(Error::Refused(_)) => {}
                Err(e) => return Err(e),
            }
        }
        Ok(())
    }

    /// The node may have changed.
    pub(in super::super) fn changed() -> Result<(), Error> {
        let client = xenstore::client()?;
        let control = client.transaction(|t| {
            let value = match client.read(t, PATH) {
                Ok(value) => value,
                Err(Error::Refused(_)) => return Ok(Control::Nothing),
                Err(e) => return Err(e),
            };
            let control = Control::parse(&value);
            if matches!(control, Control::Request(_)) {
                client.write(t, PATH, b"")?;
            }
            Ok(control)
        })?;
        match control {
            Control::Request(request) => {
                *REQUEST.lock() = Some(request);
                REQUESTED.wake_all();
            }
            Control::Refused => println!("segue: control request refused"),
            Control::Nothing => {}
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_can_be_done_is_acknowledged() {
        assert_eq!(Control::parse(b"reboot"), Control::Request(Request::Reboot));
        assert_eq!(Control::parse(b"halt"), Control::Request(Request::Halt));
        assert_eq!(Control::parse(b""), Control::Nothing);
        for refused in [&b"suspend"[..], b"s3", b"poweroff\0", b"\xff"] {
            assert_eq!(Control::parse(refused), Control::Refused);
        }
    }
}
