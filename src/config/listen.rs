//! Which addresses may be served on: loopback, and others only where somebody said so.
//!
//! There are no keys and no TLS yet, so whoever reaches the port may run jobs. The addresses that were
//! checked are returned, so that exactly these are bound and no name is looked up twice.

use std::net::{IpAddr, SocketAddr, ToSocketAddrs};

use crate::config::key;
use crate::config::problem::{ConfigError, Problem};
use crate::config::settings::Settings;

/// The addresses to bind, in the order in which to try them. May ask the name service, and wait for it.
///
/// # Errors
/// Where the host is not known, or an address is beyond loopback and `insecure` is not set.
pub fn allowed(settings: &Settings) -> Result<Vec<SocketAddr>, ConfigError> {
    let origin = settings.origin(key::LISTEN.name);
    resolve(&settings.listen, settings.insecure)
        .map_err(|why| Problem::new(origin.to_string(), format!("listen: {why}")).into())
}

/// Whether anybody but this machine reaches the address.
pub fn is_exposed(address: &SocketAddr) -> bool {
    // An IPv4 address in IPv6 clothes is what it is underneath.
    !address.ip().to_canonical().is_loopback()
}

/// An address that a client on this machine can use to reach a listener.
pub fn reachable(address: SocketAddr) -> SocketAddr {
    let ip = match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => IpAddr::from([127, 0, 0, 1]),
        IpAddr::V6(ip) if ip.is_unspecified() => IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1]),
        ip => ip,
    };
    SocketAddr::new(ip, address.port())
}

fn resolve(listen: &str, insecure: bool) -> Result<Vec<SocketAddr>, String> {
    let found = listen.to_socket_addrs();
    let addresses: Vec<SocketAddr> = found
        .map_err(|error| format!("{listen} cannot be resolved: {error}"))?
        .collect();
    if addresses.is_empty() {
        return Err(format!("{listen} resolves to no address"));
    }
    match addresses.iter().find(|address| is_exposed(address)) {
        Some(exposed) if !insecure => Err(format!(
            "{listen} is beyond this machine ({}), and keys and TLS come in a later release: \
             whoever reaches it may run jobs. Serve on 127.0.0.1:{} and put a proxy in front that \
             knows who calls, or accept the risk with --insecure (PACENOTE_INSECURE=true)",
            exposed.ip(),
            exposed.port(),
        )),
        _ => Ok(addresses),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn loopback_is_served_on_by_any_of_its_names() {
        for good in [
            "127.0.0.1:0",
            "127.8.8.8:7430",
            "[::1]:7430",
            "localhost:7430",
            "[::ffff:127.0.0.1]:1",
        ] {
            assert!(resolve(good, false).is_ok(), "{good}");
        }
    }

    #[test]
    fn an_address_beyond_loopback_is_refused_unless_somebody_accepts_the_risk() {
        for open in [
            "0.0.0.0:7430",
            "[::]:7430",
            "192.168.1.2:7430",
            "[::ffff:10.0.0.1]:7430",
            "8.8.8.8:1",
        ] {
            let error = resolve(open, false).expect_err(open);
            assert!(
                error.contains("--insecure") && error.contains("TLS"),
                "{error}"
            );
            assert!(resolve(open, true).is_ok(), "{open}");
        }
    }

    #[test]
    fn a_host_that_does_not_exist_is_refused() {
        let error = resolve("host.invalid:7430", true).expect_err("reserved by RFC 6761");
        assert!(error.contains("host.invalid"), "{error}");
    }

    #[test]
    fn a_client_on_this_machine_is_told_an_address_that_works() {
        for (listening, told) in [
            ("0.0.0.0:5", "127.0.0.1:5"),
            ("[::]:5", "[::1]:5"),
            ("10.0.0.1:5", "10.0.0.1:5"),
        ] {
            let address: SocketAddr = listening.parse().expect("an address");
            assert_eq!(reachable(address).to_string(), told);
        }
    }
}
