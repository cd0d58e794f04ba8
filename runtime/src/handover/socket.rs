//! Sockets as values.

use serde::de::{self, Deserialize, Deserializer};
use serde::ser::{self, Serialize, Serializer};
use std::fmt;
use std::marker::PhantomData;
use std::net::{TcpListener, TcpStream, UdpSocket};
use std::ops::{Deref, DerefMut};
use std::os::fd::{AsFd, OwnedFd};

#[cfg(not(target_os = "hermit"))]
#[path = "socket/on_host.rs"]
mod platform;
#[cfg(target_os = "hermit")]
#[path = "socket/on_xen.rs"]
mod platform;

pub(super) use platform::finish;

/// More than a ticket needs.
const ROOM: usize = 256;

/// The kinds of sockets that std knows.
pub trait Kind: AsFd + From<OwnedFd> + sealed::Sealed {}

impl<T: AsFd + From<OwnedFd> + sealed::Sealed> Kind for T {}

mod sealed {
    use super::{TcpListener, TcpStream, UdpSocket};

    pub trait Sealed {
        /// Its number between images, and its name.
        const KIND: (u8, &'static str);
    }

    impl<T: Sealed> Sealed for &T {
        const KIND: (u8, &'static str) = T::KIND;
    }

    impl Sealed for TcpListener {
        const KIND: (u8, &'static str) = (1, "TcpListener");
    }

    impl Sealed for TcpStream {
        const KIND: (u8, &'static str) = (2, "TcpStream");
    }

    impl Sealed for UdpSocket {
        const KIND: (u8, &'static str) = (3, "UdpSocket");
    }
}

/// A socket that can be part of a value: writing the value down offers it to the next image, where
/// reading the value takes it. Here it goes on working, until the switch, and after it if that
/// fails.
///
/// ```
/// use segue::handover::Socket;
/// use serde::{Deserialize, Serialize};
/// use std::net::TcpStream;
///
/// #[derive(Serialize, Deserialize)]
/// struct Connection {
///     stream: Socket<TcpStream>,
///     pending: Vec<u8>,
/// }
/// ```
///
/// On a host, where nothing is ever replaced, it can be read once, in the same thread: that is for
/// tests.
#[derive(Debug)]
pub struct Socket<T>(T);

impl<T> Socket<T> {
    /// A socket as part of a value.
    pub const fn new(socket: T) -> Self {
        Self(socket)
    }

    /// The socket.
    pub fn into_inner(self) -> T {
        self.0
    }
}

impl<T> From<T> for Socket<T> {
    fn from(socket: T) -> Self {
        Self(socket)
    }
}

impl<T> Deref for Socket<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T> DerefMut for Socket<T> {
    fn deref_mut(&mut self) -> &mut T {
        &mut self.0
    }
}

/// Also of a reference, for who owns the socket otherwise.
impl<T: AsFd + sealed::Sealed> Serialize for Socket<T> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let cannot = |e: &dyn fmt::Display| {
            ser::Error::custom(format_args!("a socket can't be handed over: {e}"))
        };
        let ticket = platform::offer(self.0.as_fd()).map_err(|e| cannot(&e))?;
        // As short as it gets: there may be thousands.
        let mut room = [0; ROOM];
        let bytes = postcard::to_slice(&(T::KIND.0, ticket), &mut room).map_err(|e| cannot(&e))?;
        serializer.serialize_bytes(bytes)
    }
}

impl<'de, T: Kind> Deserialize<'de> for Socket<T> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_bytes(Taking(PhantomData))
    }
}

struct Taking<T>(PhantomData<T>);

impl<T: Kind> de::Visitor<'_> for Taking<T> {
    type Value = Socket<T>;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "a {}", T::KIND.1)
    }

    fn visit_bytes<E: de::Error>(self, bytes: &[u8]) -> Result<Self::Value, E> {
        let (kind, ticket): (u8, platform::Ticket) =
            postcard::from_bytes(bytes).map_err(E::custom)?;
        if kind != T::KIND.0 {
            return Err(E::custom(format_args!(
                "a socket of another kind than {}",
                T::KIND.1
            )));
        }
        let socket = platform::claim(&ticket);
        socket
            .map(|fd| Socket(T::from(fd)))
            .map_err(|e| E::custom(format_args!("a socket can't be taken: {e}")))
    }
}
