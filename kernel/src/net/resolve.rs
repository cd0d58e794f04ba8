//! Names to addresses, by smoltcp's DNS client on the interface that leads to the name server.

use super::host::Host;
use alloc::vec::Vec;
use core::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use smoltcp::socket::dns::{QueryHandle, StartQueryError};
use smoltcp::wire::DnsQueryType;

/// Why a name has no address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ResolveError {
    /// No name at all: empty, too long, or with such a part.
    BadName,
    /// There is no name server, or no way to it.
    NoServer,
    /// Nobody knows it, or nobody answered.
    Unknown,
}

impl core::fmt::Display for ResolveError {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str(match self {
            Self::BadName => "that is no host name",
            Self::NoServer => "no name server: say segue.dns=ADDRESS",
            Self::Unknown => "nobody knows that host",
        })
    }
}

/// A name being looked up.
pub struct Lookup {
    number: usize,
    serial: u32,
    queries: Vec<QueryHandle>,
    found: Vec<IpAddr>,
}

impl core::fmt::Debug for Lookup {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Lookup")
            .field("number", &self.number)
            .field("open", &self.queries.len())
            .field("found", &self.found)
            .finish_non_exhaustive()
    }
}

/// Addresses of names that need no server (RFC 6761 section 6.3), and addresses written as such.
#[must_use]
pub fn known(name: &str) -> Option<Vec<IpAddr>> {
    if let Ok(addr) = name.parse() {
        return Some(alloc::vec![addr]);
    }
    let name = name.strip_suffix('.').unwrap_or(name);
    let local = name.eq_ignore_ascii_case("localhost")
        || name
            .len()
            .checked_sub(".localhost".len())
            .and_then(|at| name.get(at..))
            .is_some_and(|end| end.eq_ignore_ascii_case(".localhost"));
    local.then(|| alloc::vec![Ipv4Addr::LOCALHOST.into(), Ipv6Addr::LOCALHOST.into()])
}

impl Host {
    /// Begins to look up a name's addresses of these kinds.
    ///
    /// # Errors
    /// See [`ResolveError`].
    pub fn look_up(&mut self, name: &str, v4: bool, v6: bool) -> Result<Lookup, ResolveError> {
        let servers = self.name_servers();
        let routes = servers.iter().filter_map(|s| self.route(*s, None));
        let number = routes.map(|(n, _)| n).next();
        let number = number.ok_or(ResolveError::NoServer)?;
        let Some(Some(i)) = self.interfaces.get_mut(number) else {
            return Err(ResolveError::NoServer);
        };
        let mut lookup = Lookup {
            number,
            serial: i.serial,
            queries: Vec::new(),
            found: Vec::new(),
        };
        for (wanted, kind) in [(v4, DnsQueryType::A), (v6, DnsQueryType::Aaaa)] {
            if wanted {
                let query = i.look_up(name, kind, &servers);
                lookup.queries.push(query.map_err(|e| match e {
                    StartQueryError::NoFreeSlot => ResolveError::NoServer,
                    _ => ResolveError::BadName,
                })?);
            }
        }
        Ok(lookup)
    }

    /// Whether a look-up is over; then with its addresses, those there is a way to first.
    pub fn looked_up(&mut self, lookup: &mut Lookup) -> Option<Result<Vec<IpAddr>, ResolveError>> {
        match self.interfaces.get_mut(lookup.number) {
            Some(Some(i)) if i.serial == lookup.serial => {
                let found = &mut lookup.found;
                lookup.queries.retain(|q| match i.looked_up(*q) {
                    None => true,
                    Some(answer) => {
                        found.extend(answer.into_iter().flatten());
                        false
                    }
                });
            }
            _ => lookup.queries.clear(),
        }
        if !lookup.queries.is_empty() {
            return None;
        }
        let mut found = core::mem::take(&mut lookup.found);
        // IPv6 first where there is a way, and neither where there is none (RFC 6724).
        found.sort_by_key(|a| (self.source_for(*a).is_none(), a.is_ipv4()));
        Some(if found.is_empty() {
            Err(ResolveError::Unknown)
        } else {
            Ok(found)
        })
    }

    /// Gives up a look-up.
    pub fn cancel(&mut self, lookup: &mut Lookup) {
        if let Some(Some(i)) = self.interfaces.get_mut(lookup.number)
            && i.serial == lookup.serial
        {
            lookup.queries.drain(..).for_each(|q| i.cancel(q));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn some_names_need_no_server() {
        let said = |name| known(name).map(|a| a.iter().map(|a| a.to_string()).collect::<Vec<_>>());
        assert_eq!(said("10.1.2.3").unwrap(), ["10.1.2.3"]);
        assert_eq!(said("fd00::1").unwrap(), ["fd00::1"]);
        assert_eq!(said("LocalHost.").unwrap(), ["127.0.0.1", "::1"]);
        assert_eq!(said("a.localhost").unwrap(), ["127.0.0.1", "::1"]);
        assert_eq!(said("localhost.example"), None);
        assert_eq!(said(""), None);
    }
}
