//! Which proxy a request goes through, by the variables that all programs know.
//!
//! ```text
//! https_proxy, http_proxy, all_proxy   by the scheme of the address; upper case too, and first
//! no_proxy                             host.example, .host.example, host:port, 10.0.0.0/8, *; this machine never needs one
//! ```

use super::http::Address;
use std::net::IpAddr;

/// The proxy for an address, as `variable` tells what the environment says; `None` for a direct connection.
pub(super) fn proxy_for(address: &Address, variable: &dyn Fn(&str) -> Option<String>) -> Option<String> {
    let either =
        |name: &str| variable(&name.to_uppercase()).or_else(|| variable(name)).filter(|value| !value.is_empty());
    let proxy = either(if address.is_https { "https_proxy" } else { "http_proxy" }).or_else(|| either("all_proxy"))?;
    let (host, port) = host_and_port(address);
    if is_this_machine(host)
        || either("no_proxy").is_some_and(|list| list.split(',').any(|entry| covers(entry, host, port)))
    {
        return None;
    }
    Some(if proxy.contains("://") { proxy } else { format!("http://{proxy}") })
}

fn host_and_port(address: &Address) -> (&str, u16) {
    let default = if address.is_https { 443 } else { 80 };
    let authority = &address.authority;
    let (host, port) = match authority.rsplit_once(':') {
        // The colons of an IPv6 address stand in brackets.
        Some((host, port)) if !port.contains(']') => (host, port.parse().unwrap_or(default)),
        _ => (authority.as_str(), default),
    };
    (host.trim_matches(['[', ']']), port)
}

fn is_this_machine(host: &str) -> bool {
    host == "localhost" || host.ends_with(".localhost") || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// Whether an entry of `no_proxy` speaks of a host.
fn covers(entry: &str, host: &str, port: u16) -> bool {
    let entry = entry.trim().to_ascii_lowercase();
    let address = host.parse::<IpAddr>().ok();
    if let Some((network, bits)) = entry.split_once('/') {
        let parsed = (network.parse::<IpAddr>(), bits.parse::<u32>(), address);
        return matches!(parsed, (Ok(network), Ok(bits), Some(address)) if is_within(address, network, bits));
    }
    let (name, only_port) = match entry.rsplit_once(':') {
        Some((name, number)) if !name.contains(':') || name.ends_with(']') => (name, number.parse::<u16>().ok()),
        _ => (entry.as_str(), None),
    };
    if only_port.is_some_and(|only| only != port) {
        return false;
    }
    let name = name.trim_matches(['[', ']']);
    match name.strip_prefix('*').unwrap_or(name) {
        "" => name == "*",
        below if below.starts_with('.') => host.ends_with(below),
        name => name == host || host.strip_suffix(name).is_some_and(|rest| rest.ends_with('.') && address.is_none()),
    }
}

fn is_within(address: IpAddr, network: IpAddr, bits: u32) -> bool {
    let number = |address: IpAddr| match address {
        IpAddr::V4(address) => u128::from(address.to_bits()) << 96,
        IpAddr::V6(address) => address.to_bits(),
    };
    let most = if network.is_ipv4() { 32 } else { 128 };
    address.is_ipv4() == network.is_ipv4()
        && bits <= most
        && (number(address) ^ number(network)).checked_shr(128 - bits).unwrap_or(0) == 0
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(variables: &[(&str, &str)], address: &str, expected: Option<&str>) {
        let variable =
            |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).to_owned());
        assert_eq!(proxy_for(&Address::parse(address).unwrap(), &variable).as_deref(), expected, "{address}");
    }

    #[test]
    fn each_scheme_has_its_variable_and_one_is_for_all() {
        let both = [("https_proxy", "http://s:1"), ("http_proxy", "p:2")];
        check(&both, "https://a.example/", Some("http://s:1"));
        check(&both, "http://a.example/", Some("http://p:2"));
        check(&both[1..], "https://a.example/", None);
        check(&[("ALL_PROXY", "socks5://x:1080")], "https://a.example/", Some("socks5://x:1080"));
        check(&[("HTTP_PROXY", "http://big:1"), ("http_proxy", "http://small:1")], "http://a/", Some("http://big:1"));
        check(&[("http_proxy", "")], "http://a/", None);
    }

    #[test]
    fn this_machine_needs_no_proxy() {
        for host in ["localhost:5000", "127.0.0.1:5000", "[::1]:5000", "127.9.9.9"] {
            check(&[("http_proxy", "http://p:1")], &format!("http://{host}/"), None);
        }
    }

    #[test]
    fn hosts_that_no_proxy_names_are_asked_directly() {
        let hosts = |list: &str, direct: &[&str], by_proxy: &[&str]| {
            let variables = [("http_proxy", "http://p:1"), ("no_proxy", list)];
            direct.iter().for_each(|host| check(&variables, &format!("http://{host}/"), None));
            by_proxy.iter().for_each(|host| check(&variables, &format!("http://{host}/"), Some("http://p:1")));
        };
        hosts("a.example, B.example", &["a.example", "x.a.example:99", "b.example"], &["xa.example", "example"]);
        hosts(".a.example", &["x.a.example"], &["a.example"]);
        hosts("*.a.example", &["x.a.example"], &["a.example"]);
        hosts("a.example:5000", &["a.example:5000"], &["a.example"]);
        hosts("10.0.0.0/8,fd00::/8", &["10.2.3.4:80", "[fd00::1]:5000"], &["11.0.0.1", "[fe00::1]", "ten.example"]);
        hosts("10.1.1.1", &["10.1.1.1"], &["110.1.1.1", "10.1.1.10"]);
        hosts("*", &["a.example", "10.1.1.1"], &[]);
        hosts(" ,", &[], &["a.example"]);
        hosts("0.0.0.0/0", &["1.2.3.4"], &["a.example", "[fe00::1]"]);
        hosts("10.0.0.0/99", &[], &["10.0.0.1"]);
    }
}
