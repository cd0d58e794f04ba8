//! Sockets: the `sys_*` functions of std's `net`, and what they need of a descriptor's object.
//! Layouts and numbers are those of crate `hermit-abi`; errors are those of Linux's man pages
//! (section 2 of each call, ip(7), tcp(7), udp(7), ipv6(7)).

use super::errno::Errno;
use super::fd::{self, Object};
use crate::net;
use crate::net::handover::Ticket;
use crate::net::resolve::ResolveError;
use crate::net::socket::{TcpSocket, UdpSocket};
use alloc::boxed::Box;
use alloc::sync::Arc;
use alloc::vec::Vec;
use core::ffi::{CStr, c_char, c_void};
use core::net::{IpAddr, SocketAddr, SocketAddrV4, SocketAddrV6};
use hermit_abi as abi;

/// `MSG_*` of Linux (hermit-abi has only the first).
pub mod msg {
    /// Leave what is received where it is (there is no out-of-band data: its number is taken).
    pub const PEEK: i32 = hermit_abi::MSG_PEEK;
    /// Tell the datagram's real length.
    pub const TRUNC: i32 = 0x20;
    /// Do not wait.
    pub const DONTWAIT: i32 = 0x40;
    /// Wait until all is there.
    pub const WAITALL: i32 = 0x100;
}

/// Which direction ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum How {
    /// Receiving.
    Read,
    /// Sending.
    Write,
    /// Both.
    Both,
}

/// A socket behind a descriptor.
pub trait Socket: Send + Sync {
    /// Gives it an address of ours.
    ///
    /// # Errors
    /// As `bind(2)` has them.
    fn bind(&self, addr: SocketAddr) -> Result<(), Errno>;

    /// Lets it be connected to.
    ///
    /// # Errors
    /// As `listen(2)` has them.
    fn listen(&self, backlog: i32) -> Result<(), Errno> {
        let _ = backlog;
        Err(Errno::EOPNOTSUPP)
    }

    /// The next connection, and who made it.
    ///
    /// # Errors
    /// As `accept(2)` has them.
    fn accept(&self) -> Result<(Arc<dyn Object>, SocketAddr), Errno> {
        Err(Errno::EOPNOTSUPP)
    }

    /// Connects it to somebody, or (UDP only) to nobody.
    ///
    /// # Errors
    /// As `connect(2)` has them.
    fn connect(&self, to: Option<SocketAddr>) -> Result<(), Errno>;

    /// Sends; returns how many bytes.
    ///
    /// # Errors
    /// As `sendto(2)` has them.
    fn send(&self, bytes: &[u8], flags: i32, to: Option<SocketAddr>) -> Result<usize, Errno>;

    /// Receives; returns how many bytes, and from whom if each datagram has its sender.
    ///
    /// # Errors
    /// As `recvfrom(2)` has them.
    fn receive(&self, into: &mut [u8], flags: i32) -> Result<(usize, Option<SocketAddr>), Errno>;

    /// Ends a direction.
    ///
    /// # Errors
    /// As `shutdown(2)` has them.
    fn shutdown(&self, how: How) -> Result<(), Errno>;

    /// Its own address.
    ///
    /// # Errors
    /// As `getsockname(2)` has them.
    fn local(&self) -> Result<SocketAddr, Errno>;

    /// The other side's.
    ///
    /// # Errors
    /// As `getpeername(2)` has them.
    fn peer(&self) -> Result<SocketAddr, Errno>;

    /// Sets an option.
    ///
    /// # Errors
    /// As `setsockopt(2)` has them.
    fn set_option(&self, option: SetOption) -> Result<(), Errno>;

    /// Reads an option.
    ///
    /// # Errors
    /// As `getsockopt(2)` has them.
    fn option(&self, name: Name) -> Result<Value, Errno>;

    /// What another image makes the same socket of, in the same connection.
    ///
    /// # Errors
    /// `ENOTCONN`: a TCP socket that neither listens nor is connected.
    fn ticket(&self) -> Result<Ticket, Errno>;
}

/// Which option.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Name {
    /// `SO_REUSEADDR`.
    ReuseAddr,
    /// `SO_KEEPALIVE`.
    KeepAlive,
    /// `SO_BROADCAST`.
    Broadcast,
    /// `SO_LINGER`.
    Linger,
    /// `SO_SNDBUF`.
    SendBuffer,
    /// `SO_RCVBUF`.
    ReceiveBuffer,
    /// `SO_SNDTIMEO`.
    SendTimeout,
    /// `SO_RCVTIMEO`.
    ReceiveTimeout,
    /// `SO_ERROR`.
    Error,
    /// `TCP_NODELAY`.
    NoDelay,
    /// `IP_TTL`.
    Ttl,
    /// `IP_MULTICAST_TTL`.
    GroupTtl,
    /// `IP_MULTICAST_LOOP`.
    GroupLoop,
    /// `IPV6_MULTICAST_LOOP`.
    GroupLoop6,
    /// `IPV6_V6ONLY`.
    V6Only,
}

/// What an option is set to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SetOption {
    /// An option that is a number.
    Number(Name, i32),
    /// A time, in ns; 0: none.
    Timeout(Name, u64),
    /// How long `close` may wait, in seconds; `None`: not at all.
    Linger(Option<u32>),
    /// Join (or leave) a group, by the interface with that address or number (0: any).
    Group {
        /// The group.
        group: IpAddr,
        /// Our address on the interface.
        at: Option<IpAddr>,
        /// Or its number, from 1.
        number: u32,
        /// Join, or leave.
        join: bool,
    },
}

/// What an option is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A number.
    Number(i32),
    /// A time, in ns; 0: none.
    Timeout(u64),
    /// As [`SetOption::Linger`].
    Linger(Option<u32>),
}

impl Name {
    fn find(level: i32, name: i32) -> Result<Self, Errno> {
        Ok(match (level, name) {
            (abi::SOL_SOCKET, abi::SO_REUSEADDR) => Self::ReuseAddr,
            (abi::SOL_SOCKET, abi::SO_KEEPALIVE) => Self::KeepAlive,
            (abi::SOL_SOCKET, abi::SO_BROADCAST) => Self::Broadcast,
            (abi::SOL_SOCKET, abi::SO_LINGER) => Self::Linger,
            (abi::SOL_SOCKET, abi::SO_SNDBUF) => Self::SendBuffer,
            (abi::SOL_SOCKET, abi::SO_RCVBUF) => Self::ReceiveBuffer,
            (abi::SOL_SOCKET, abi::SO_SNDTIMEO) => Self::SendTimeout,
            (abi::SOL_SOCKET, abi::SO_RCVTIMEO) => Self::ReceiveTimeout,
            (abi::SOL_SOCKET, abi::SO_ERROR) => Self::Error,
            (abi::IPPROTO_TCP, abi::TCP_NODELAY) => Self::NoDelay,
            (abi::IPPROTO_IP, abi::IP_TTL) => Self::Ttl,
            (abi::IPPROTO_IP, abi::IP_MULTICAST_TTL) => Self::GroupTtl,
            (abi::IPPROTO_IP, abi::IP_MULTICAST_LOOP) => Self::GroupLoop,
            (abi::IPPROTO_IPV6, abi::IPV6_MULTICAST_LOOP) => Self::GroupLoop6,
            (abi::IPPROTO_IPV6, abi::IPV6_V6ONLY) => Self::V6Only,
            _ => return Err(Errno::ENOPROTOOPT),
        })
    }
}

/// What is at `ptr`, if `len` bytes are enough for it.
///
/// # Safety
/// `ptr` is null or `len` bytes can be read there.
unsafe fn read<T: Copy>(ptr: *const c_void, len: u32) -> Result<T, Errno> {
    if ptr.is_null() {
        return Err(Errno::EFAULT);
    }
    if (len as usize) < size_of::<T>() {
        return Err(Errno::EINVAL);
    }
    // SAFETY: there are enough bytes; every caller's `T` is plain numbers.
    Ok(unsafe { ptr.cast::<T>().read_unaligned() })
}

/// Reads a socket address; `None`: of no family.
///
/// # Safety
/// `ptr` is null or `len` bytes can be read there.
unsafe fn read_addr(ptr: *const abi::sockaddr, len: u32) -> Result<Option<SocketAddr>, Errno> {
    let ptr: *const c_void = ptr.cast();
    // SAFETY: as the caller says.
    let [_, family] = unsafe { read::<[u8; 2]>(ptr, len)? };
    match i32::from(family) {
        abi::AF_UNSPEC => Ok(None),
        abi::AF_INET => {
            // SAFETY: as the caller says.
            let a = unsafe { read::<abi::sockaddr_in>(ptr, len)? };
            let ip = a.sin_addr.s_addr.to_ne_bytes().into();
            let port = u16::from_be(a.sin_port);
            Ok(Some(SocketAddrV4::new(ip, port).into()))
        }
        abi::AF_INET6 => {
            // SAFETY: as the caller says.
            let a = unsafe { read::<abi::sockaddr_in6>(ptr, len)? };
            let ip = a.sin6_addr.s6_addr.into();
            let port = u16::from_be(a.sin6_port);
            Ok(Some(
                SocketAddrV6::new(ip, port, a.sin6_flowinfo, a.sin6_scope_id).into(),
            ))
        }
        _ => Err(Errno::EAFNOSUPPORT),
    }
}

/// As C has it, with its length.
fn sockaddr(addr: SocketAddr) -> (abi::sockaddr_storage, usize) {
    // SAFETY: all zero is a value of plain numbers.
    let mut out: abi::sockaddr_storage = unsafe { core::mem::zeroed() };
    let place = &raw mut out;
    let len = match addr {
        SocketAddr::V4(a) => {
            let c = abi::sockaddr_in {
                sin_len: size_of::<abi::sockaddr_in>() as u8,
                sin_family: abi::AF_INET as u8,
                sin_port: a.port().to_be(),
                sin_addr: abi::in_addr {
                    s_addr: u32::from_ne_bytes(a.ip().octets()),
                },
                sin_zero: [0; 8],
            };
            // SAFETY: it is larger and no less aligned.
            unsafe { place.cast::<abi::sockaddr_in>().write(c) };
            size_of::<abi::sockaddr_in>()
        }
        SocketAddr::V6(a) => {
            let c = abi::sockaddr_in6 {
                sin6_len: size_of::<abi::sockaddr_in6>() as u8,
                sin6_family: abi::AF_INET6 as u8,
                sin6_port: a.port().to_be(),
                sin6_flowinfo: a.flowinfo(),
                sin6_addr: abi::in6_addr {
                    s6_addr: a.ip().octets(),
                },
                sin6_scope_id: a.scope_id(),
            };
            // SAFETY: it is larger and no less aligned.
            unsafe { place.cast::<abi::sockaddr_in6>().write(c) };
            size_of::<abi::sockaddr_in6>()
        }
    };
    (out, len)
}

/// Writes a socket address where there is room for `*len` bytes, and its real length to `len`.
///
/// # Safety
/// `ptr` and `len` are null or valid for that.
unsafe fn write_addr(
    addr: SocketAddr,
    ptr: *mut abi::sockaddr,
    len: *mut u32,
) -> Result<(), Errno> {
    if ptr.is_null() {
        return Ok(());
    }
    if len.is_null() {
        return Err(Errno::EFAULT);
    }
    let (storage, real) = sockaddr(addr);
    // SAFETY: as the caller says; no more is written than there is room for.
    unsafe {
        let room = (len.read_unaligned() as usize).min(real);
        core::ptr::copy_nonoverlapping((&raw const storage).cast::<u8>(), ptr.cast(), room);
        len.write_unaligned(real as u32);
    }
    Ok(())
}

#[cfg(target_os = "hermit")]
use super::answer as size;
#[cfg(target_os = "hermit")]
use super::answer_int as number;

/// On the host no thread remembers errors.
#[cfg(not(target_os = "hermit"))]
fn size<T: TryInto<isize>>(result: Result<T, Errno>) -> isize {
    let result = result.and_then(|n| n.try_into().map_err(|_| Errno::EOVERFLOW));
    result.unwrap_or_else(|e| -(e.0 as isize))
}

#[cfg(not(target_os = "hermit"))]
fn number<T: TryInto<isize>>(result: Result<T, Errno>) -> i32 {
    size(result) as i32
}

fn status(result: Result<(), Errno>) -> i32 {
    number(result.map(|()| 0i32))
}

/// Runs `f` on the socket behind `fd`.
fn on<R>(fd: i32, f: impl FnOnce(&dyn Socket) -> Result<R, Errno>) -> Result<R, Errno> {
    let object = fd::get(fd)?;
    f(object.socket().ok_or(Errno::ENOTSOCK)?)
}

#[unsafe(no_mangle)]
extern "C" fn sys_socket(domain: i32, kind: i32, protocol: i32) -> i32 {
    #[cfg(target_os = "hermit")]
    net::device::start();
    let open = || {
        let v6 = match domain {
            abi::AF_INET => false,
            abi::AF_INET6 => true,
            _ => return Err(Errno::EAFNOSUPPORT),
        };
        let flags = abi::SOCK_NONBLOCK | abi::SOCK_CLOEXEC;
        let nonblocking = kind & abi::SOCK_NONBLOCK != 0;
        let object: Arc<dyn Object> = match (kind & !flags, protocol) {
            (abi::SOCK_STREAM, 0 | abi::IPPROTO_TCP) => TcpSocket::open(v6),
            (abi::SOCK_DGRAM, 0 | abi::IPPROTO_UDP) => UdpSocket::open(v6)?,
            (abi::SOCK_STREAM | abi::SOCK_DGRAM, _) => return Err(Errno::EPROTONOSUPPORT),
            _ => return Err(Errno::ESOCKTNOSUPPORT),
        };
        let fd = fd::insert(object)?;
        if nonblocking {
            fd::set_nonblocking(fd, true)?;
        }
        Ok(fd)
    };
    number(open())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_bind(fd: i32, name: *const abi::sockaddr, len: u32) -> i32 {
    // SAFETY: the caller passes an address and its length.
    let addr = unsafe { read_addr(name, len) };
    status(addr.and_then(|a| on(fd, |s| s.bind(a.ok_or(Errno::EAFNOSUPPORT)?))))
}

#[unsafe(no_mangle)]
extern "C" fn sys_listen(fd: i32, backlog: i32) -> i32 {
    status(on(fd, |s| s.listen(backlog)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_accept(fd: i32, addr: *mut abi::sockaddr, len: *mut u32) -> i32 {
    let accepted = on(fd, |s| s.accept()).and_then(|(object, from)| {
        // SAFETY: the caller passes room for an address, and how much, or null.
        unsafe { write_addr(from, addr, len)? };
        fd::insert(object)
    });
    number(accepted)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_connect(fd: i32, name: *const abi::sockaddr, len: u32) -> i32 {
    // SAFETY: the caller passes an address and its length.
    let addr = unsafe { read_addr(name, len) };
    status(addr.and_then(|a| on(fd, |s| s.connect(a))))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_sendto(
    fd: i32,
    bytes: *const c_void,
    len: usize,
    flags: i32,
    to: *const abi::sockaddr,
    to_len: u32,
) -> isize {
    let send = || {
        let to = if to.is_null() {
            None
        } else {
            // SAFETY: the caller passes an address and its length.
            unsafe { read_addr(to, to_len)? }
        };
        if bytes.is_null() && len > 0 {
            return Err(Errno::EFAULT);
        }
        let bytes = if len == 0 {
            &[]
        } else {
            // SAFETY: the caller passes a slice.
            unsafe { core::slice::from_raw_parts(bytes.cast(), len) }
        };
        on(fd, |s| s.send(bytes, flags, to))
    };
    size(send())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_send(fd: i32, bytes: *const c_void, len: usize, flags: i32) -> isize {
    // SAFETY: as `sys_sendto`.
    unsafe { sys_sendto(fd, bytes, len, flags, core::ptr::null(), 0) }
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_recvfrom(
    fd: i32,
    into: *mut u8,
    len: usize,
    flags: i32,
    addr: *mut abi::sockaddr,
    addr_len: *mut u32,
) -> isize {
    let receive = || {
        if into.is_null() && len > 0 {
            return Err(Errno::EFAULT);
        }
        let into = if len == 0 {
            &mut []
        } else {
            // SAFETY: the caller passes a buffer that is nobody else's; std's may be
            // uninitialised, and nothing here reads it before it is written.
            unsafe { core::slice::from_raw_parts_mut(into, len) }
        };
        let (n, from) = on(fd, |s| s.receive(into, flags))?;
        match from {
            // SAFETY: the caller passes room for an address, and how much, or null.
            Some(from) => unsafe { write_addr(from, addr, addr_len)? },
            None if !addr.is_null() && !addr_len.is_null() => {
                // SAFETY: as above.
                unsafe { addr_len.write_unaligned(0) };
            }
            None => {}
        }
        Ok(n)
    };
    size(receive())
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_recv(fd: i32, into: *mut u8, len: usize, flags: i32) -> isize {
    let null = core::ptr::null_mut();
    // SAFETY: as `sys_recvfrom`.
    unsafe { sys_recvfrom(fd, into, len, flags, null, core::ptr::null_mut()) }
}

#[unsafe(no_mangle)]
extern "C" fn sys_shutdown(fd: i32, how: i32) -> i32 {
    let how = match how {
        abi::SHUT_RD => How::Read,
        abi::SHUT_WR => How::Write,
        abi::SHUT_RDWR => How::Both,
        _ => return status(Err(Errno::EINVAL)),
    };
    status(on(fd, |s| s.shutdown(how)))
}

#[unsafe(no_mangle)]
extern "C" fn sys_shutdown_socket(fd: i32, how: i32) -> i32 {
    sys_shutdown(fd, how)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_getsockname(fd: i32, addr: *mut abi::sockaddr, len: *mut u32) -> i32 {
    let name = on(fd, |s| s.local());
    // SAFETY: the caller passes room for an address, and how much.
    status(name.and_then(|a| unsafe { write_addr(a, addr, len) }))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_getpeername(fd: i32, addr: *mut abi::sockaddr, len: *mut u32) -> i32 {
    let name = on(fd, |s| s.peer());
    // SAFETY: the caller passes room for an address, and how much.
    status(name.and_then(|a| unsafe { write_addr(a, addr, len) }))
}

/// The option that `setsockopt`'s arguments stand for.
///
/// # Safety
/// `value` is null or `len` bytes can be read there.
unsafe fn read_option(
    level: i32,
    name: i32,
    value: *const c_void,
    len: u32,
) -> Result<SetOption, Errno> {
    let v4_group = matches!(name, abi::IP_ADD_MEMBERSHIP | abi::IP_DROP_MEMBERSHIP);
    if level == abi::IPPROTO_IP && v4_group {
        // SAFETY: as the caller says.
        let request = unsafe { read::<abi::ip_mreq>(value, len)? };
        let at = IpAddr::from(request.imr_interface.s_addr.to_ne_bytes());
        return Ok(SetOption::Group {
            group: IpAddr::from(request.imr_multiaddr.s_addr.to_ne_bytes()),
            at: (!at.is_unspecified()).then_some(at),
            number: 0,
            join: name == abi::IP_ADD_MEMBERSHIP,
        });
    }
    let v6_group = matches!(name, abi::IPV6_ADD_MEMBERSHIP | abi::IPV6_DROP_MEMBERSHIP);
    if level == abi::IPPROTO_IPV6 && v6_group {
        // SAFETY: as the caller says.
        let request = unsafe { read::<abi::ipv6_mreq>(value, len)? };
        return Ok(SetOption::Group {
            group: IpAddr::from(request.ipv6mr_multiaddr.s6_addr),
            at: None,
            number: request.ipv6mr_interface,
            join: name == abi::IPV6_ADD_MEMBERSHIP,
        });
    }
    let name = Name::find(level, name)?;
    Ok(match name {
        Name::SendTimeout | Name::ReceiveTimeout => {
            // SAFETY: as the caller says.
            let time = unsafe { read::<abi::timeval>(value, len)? };
            let (Ok(sec), Ok(us @ 0..1_000_000)) =
                (u64::try_from(time.tv_sec), u64::try_from(time.tv_usec))
            else {
                return Err(Errno::EDOM);
            };
            let ns = sec.saturating_mul(1_000_000_000);
            SetOption::Timeout(name, ns.saturating_add(us * 1000))
        }
        Name::Linger => {
            // SAFETY: as the caller says.
            let linger = unsafe { read::<abi::linger>(value, len)? };
            let time = u32::try_from(linger.l_linger).map_err(|_| Errno::EINVAL)?;
            SetOption::Linger((linger.l_onoff != 0).then_some(time))
        }
        // SAFETY: as the caller says.
        _ => SetOption::Number(name, unsafe { read::<i32>(value, len)? }),
    })
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_setsockopt(
    fd: i32,
    level: i32,
    name: i32,
    value: *const c_void,
    len: u32,
) -> i32 {
    // SAFETY: the caller passes a value and its length.
    let option = unsafe { read_option(level, name, value, len) };
    status(on(fd, |s| s.set_option(option?)))
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_getsockopt(
    fd: i32,
    level: i32,
    name: i32,
    value: *mut c_void,
    len: *mut u32,
) -> i32 {
    let get = || {
        let got = on(fd, |s| s.option(Name::find(level, name)?))?;
        match got {
            // SAFETY: the caller passes room for a value, and how much.
            Value::Number(n) => unsafe { write_option(n, value, len) },
            Value::Timeout(ns) => {
                let time = abi::timeval {
                    tv_sec: i64::try_from(ns / 1_000_000_000).unwrap_or(i64::MAX),
                    tv_usec: (ns % 1_000_000_000 / 1000) as i32,
                };
                // SAFETY: as above.
                unsafe { write_option(time, value, len) }
            }
            Value::Linger(time) => {
                let linger = abi::linger {
                    l_onoff: i32::from(time.is_some()),
                    l_linger: time.and_then(|t| i32::try_from(t).ok()).unwrap_or(0),
                };
                // SAFETY: as above.
                unsafe { write_option(linger, value, len) }
            }
        }
    };
    status(get())
}

/// Writes as much of `option` as there is room for, and its length.
///
/// # Safety
/// Both are null, or `value` has room for `*len` bytes.
unsafe fn write_option<T: Copy>(option: T, value: *mut c_void, len: *mut u32) -> Result<(), Errno> {
    if value.is_null() || len.is_null() {
        return Err(Errno::EFAULT);
    }
    // SAFETY: as the caller says; every caller's `T` is plain numbers.
    unsafe {
        let room = (len.read_unaligned() as usize).min(size_of::<T>());
        core::ptr::copy_nonoverlapping((&raw const option).cast::<u8>(), value.cast(), room);
        len.write_unaligned(room as u32);
    }
    Ok(())
}

/// One address in `getaddrinfo`'s list.
#[repr(C)]
struct Node {
    info: abi::addrinfo,
    addr: abi::sockaddr_storage,
}

/// The port that `getaddrinfo`'s service names, as a number.
fn service(name: Option<&CStr>) -> Result<u16, i32> {
    let Some(name) = name else {
        return Ok(0);
    };
    let number = name.to_str().ok().and_then(|n| n.parse().ok());
    number.ok_or(abi::EAI_SERVICE)
}

fn addresses(
    name: Option<&CStr>,
    service_name: Option<&CStr>,
    family: i32,
) -> Result<Vec<SocketAddr>, i32> {
    let (v4, v6) = match family {
        abi::AF_UNSPEC => (true, true),
        abi::AF_INET => (true, false),
        abi::AF_INET6 => (false, true),
        _ => return Err(abi::EAI_FAMILY),
    };
    let port = service(service_name)?;
    let found = match name {
        // Without a name it is this host.
        None if service_name.is_none() => return Err(abi::EAI_NONAME),
        None => net::resolve::known("localhost").unwrap_or_default(),
        Some(name) => {
            let name = name.to_str().map_err(|_| abi::EAI_NONAME)?;
            match net::resolve::known(name) {
                Some(found) => found,
                None => net::look_up(name, v4, v6).map_err(|e| match e {
                    ResolveError::BadName | ResolveError::Unknown => abi::EAI_NONAME,
                    ResolveError::NoServer => abi::EAI_AGAIN,
                })?,
            }
        }
    };
    let wanted = |a: &IpAddr| if a.is_ipv4() { v4 } else { v6 };
    let found: Vec<_> = found
        .into_iter()
        .filter(wanted)
        .map(|a| SocketAddr::new(a, port))
        .collect();
    if found.is_empty() {
        return Err(abi::EAI_NONAME);
    }
    Ok(found)
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_getaddrinfo(
    name: *const c_char,
    service: *const c_char,
    hints: *const abi::addrinfo,
    result: *mut *mut abi::addrinfo,
) -> i32 {
    if result.is_null() {
        return abi::EAI_SYSTEM;
    }
    #[cfg(target_os = "hermit")]
    net::device::start();
    // SAFETY: the caller passes strings and a structure, or null.
    let (name, service, hints) = unsafe {
        let text = |p: *const c_char| (!p.is_null()).then(|| CStr::from_ptr(p));
        (text(name), text(service), hints.as_ref())
    };
    let kind = hints.map_or(0, |h| h.ai_socktype);
    let kinds: &[i32] = match kind {
        0 => &[abi::SOCK_STREAM, abi::SOCK_DGRAM],
        abi::SOCK_STREAM => &[abi::SOCK_STREAM],
        abi::SOCK_DGRAM => &[abi::SOCK_DGRAM],
        _ => return abi::EAI_SOCKTYPE,
    };
    let family = hints.map_or(abi::AF_UNSPEC, |h| h.ai_family);
    let found = match addresses(name, service, family) {
        Ok(found) => found,
        Err(e) => return e,
    };
    let mut head = core::ptr::null_mut();
    for addr in found.iter().rev() {
        for kind in kinds.iter().rev() {
            let (storage, len) = sockaddr(*addr);
            let family = if addr.is_ipv4() {
                abi::AF_INET
            } else {
                abi::AF_INET6
            };
            let protocol = if *kind == abi::SOCK_STREAM {
                abi::IPPROTO_TCP
            } else {
                abi::IPPROTO_UDP
            };
            let node = Box::into_raw(Box::new(Node {
                info: abi::addrinfo {
                    ai_flags: 0,
                    ai_family: family,
                    ai_socktype: *kind,
                    ai_protocol: protocol,
                    ai_addrlen: len as u32,
                    ai_canonname: core::ptr::null_mut(),
                    ai_addr: core::ptr::null_mut(),
                    ai_next: head,
                },
                addr: storage,
            }));
            // SAFETY: the node was just made, and is nobody else's.
            unsafe { (*node).info.ai_addr = (&raw mut (*node).addr).cast() };
            head = node.cast();
        }
    }
    // SAFETY: the caller passes a place for it.
    unsafe { result.write(head) };
    0
}

#[unsafe(no_mangle)]
unsafe extern "C" fn sys_freeaddrinfo(list: *mut abi::addrinfo) {
    let mut next = list;
    while !next.is_null() {
        // SAFETY: the caller gives back what `sys_getaddrinfo` made, where each was a `Node`.
        let node = unsafe { Box::from_raw(next.cast::<Node>()) };
        next = node.info.ai_next;
    }
}
