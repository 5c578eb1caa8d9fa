//! Routes of the main table.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use futures::TryStreamExt;
use rtnetlink::packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteHeader, RouteMessage, RouteMetric, RouteProtocol, RouteScope,
    RouteType,
};
use rtnetlink::{Handle, RouteMessageBuilder};

use super::{index, link_name, links, with_netlink};
use crate::error::{Context, Error, Result};
use crate::protocol::types::{IPFamily, Route};

/// Replaces all routes but the kernel's own. Those without a gateway come first, for the others depend on them. Returns the routes that are
/// then there.
pub async fn update(routes: Vec<Route>) -> Result<Vec<Route>> {
    let mut wanted = routes.iter().map(|route| Ok((route.device.clone(), read(route)?))).collect::<Result<Vec<_>>>()?;
    wanted.sort_by_key(|(_, route)| route.gateway.is_some());
    with_netlink(|netlink| async move {
        for old in ours(&netlink).await? {
            netlink.route().del(old).execute().await.at("remove", "route")?;
        }
        for (device, route) in wanted {
            add(&netlink, index(&netlink, &device).await?, &route).await?;
        }
        Ok(())
    })
    .await?;
    list().await
}

/// A route as it was asked for, checked.
#[derive(Debug, PartialEq, Eq)]
struct Wanted {
    destination: (IpAddr, u8),
    gateway: Option<IpAddr>,
    source: Option<IpAddr>,
    scope: u8,
    flags: u32,
    mtu: Option<u32>,
}

fn read(route: &Route) -> Result<Wanted> {
    let unspecified: IpAddr = match route.family.enum_value_or_default() {
        IPFamily::v4 => Ipv4Addr::UNSPECIFIED.into(),
        IPFamily::v6 => Ipv6Addr::UNSPECIFIED.into(),
    };
    let destination = match route.dest.as_str() {
        "" | "default" => (unspecified, 0),
        text => cidr(text)?,
    };
    Ok(Wanted {
        destination,
        gateway: optional(&route.gateway)?,
        source: optional(&route.source)?,
        scope: u8::try_from(route.scope)
            .map_err(|_| Error::invalid(format!("route: scope {}: too large", route.scope)))?,
        flags: route.flags,
        mtu: Some(route.mtu).filter(|mtu| *mtu > 0),
    })
}

fn cidr(text: &str) -> Result<(IpAddr, u8)> {
    let bad = || Error::invalid(format!("route: destination {text:.64?}: must be ADDRESS/PREFIX"));
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().map_err(|_| bad())?;
    let most = if address.is_ipv4() { 32 } else { 128 };
    let prefix = prefix.map_or(Some(most), |prefix| prefix.parse().ok()).filter(|prefix| *prefix <= most);
    Ok((address, prefix.ok_or_else(bad)?))
}

fn optional(text: &str) -> Result<Option<IpAddr>> {
    // A source may come with a prefix, which says nothing.
    let address = text.split('/').next().unwrap_or_default();
    if address.is_empty() {
        return Ok(None);
    }
    address.parse().map(Some).map_err(|_| Error::invalid(format!("route: address {text:.64?}: not one")))
}

async fn add(netlink: &Handle, device: u32, wanted: &Wanted) -> Result<()> {
    let (destination, prefix) = wanted.destination;
    let what = format!("{destination}/{prefix}");
    let request = netlink.route().add(message(device, wanted)?);
    match request.execute().await {
        // The kernel makes some itself when an address is added.
        Err(rtnetlink::Error::NetlinkError(error)) if error.raw_code() == -libc::EEXIST => Ok(()),
        result => result.at("add route", what),
    }
}

fn message(device: u32, wanted: &Wanted) -> Result<RouteMessage> {
    let (destination, prefix) = wanted.destination;
    let builder = RouteMessageBuilder::<IpAddr>::new().output_interface(device);
    let mut builder = builder.destination_prefix(destination, prefix).at("route", destination)?;
    if let Some(gateway) = wanted.gateway {
        builder = builder.gateway(gateway).at("route", gateway)?;
    }
    if let Some(source) = wanted.source {
        builder = builder.pref_source(source).at("route", source)?;
    }
    let mut message = builder.scope(RouteScope::from(wanted.scope)).build();
    message.header.flags |= RouteFlags::from_bits_retain(wanted.flags) & RouteFlags::Onlink;
    if let Some(mtu) = wanted.mtu {
        message.attributes.push(RouteAttribute::Metrics(vec![RouteMetric::Mtu(mtu)]));
    }
    Ok(message)
}

/// Routes of both families.
async fn all(netlink: &Handle) -> Result<Vec<RouteMessage>> {
    let mut routes = Vec::new();
    for filter in [RouteMessageBuilder::<Ipv4Addr>::new().build(), RouteMessageBuilder::<Ipv6Addr>::new().build()] {
        let found: Vec<RouteMessage> =
            netlink.route().get(filter).execute().try_collect().await.at("list", "routes")?;
        routes.extend(found.into_iter().filter(in_main_table));
    }
    Ok(routes)
}

fn in_main_table(route: &RouteMessage) -> bool {
    route.header.table == RouteHeader::RT_TABLE_MAIN && route.header.kind == RouteType::Unicast
}

/// Routes that are there because somebody wanted them.
async fn ours(netlink: &Handle) -> Result<Vec<RouteMessage>> {
    let routes = all(netlink).await?;
    Ok(routes.into_iter().filter(|route| route.header.protocol != RouteProtocol::Kernel).collect())
}

/// All routes of the main table.
pub async fn list() -> Result<Vec<Route>> {
    with_netlink(|netlink| async move {
        let names: Vec<(u32, String)> =
            links(&netlink).await?.iter().map(|link| (link.header.index, link_name(link).to_owned())).collect();
        Ok(all(&netlink).await?.iter().map(|route| describe(route, &names)).collect())
    })
    .await
}

fn describe(message: &RouteMessage, names: &[(u32, String)]) -> Route {
    let mut route = Route {
        scope: u8::from(message.header.scope).into(),
        flags: message.header.flags.bits(),
        ..Default::default()
    };
    if message.header.address_family == rtnetlink::packet_route::AddressFamily::Inet6 {
        route.family = IPFamily::v6.into();
    }
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Destination(address) => {
                route.dest = format!("{}/{}", text(address), message.header.destination_prefix_length)
            }
            RouteAttribute::Gateway(address) => route.gateway = text(address),
            RouteAttribute::PrefSource(address) => route.source = text(address),
            RouteAttribute::Oif(index) => {
                route.device =
                    names.iter().find(|(known, _)| known == index).map(|(_, name)| name.clone()).unwrap_or_default();
            }
            _ => {}
        }
    }
    route
}

fn text(address: &RouteAddress) -> String {
    match address {
        RouteAddress::Inet(address) => address.to_string(),
        RouteAddress::Inet6(address) => address.to_string(),
        _ => String::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn destinations() {
        assert_eq!(cidr("10.0.0.0/8").unwrap(), ("10.0.0.0".parse().unwrap(), 8));
        assert_eq!(cidr("169.254.1.1").unwrap(), ("169.254.1.1".parse().unwrap(), 32));
        assert_eq!(cidr("fd00::/48").unwrap(), ("fd00::".parse().unwrap(), 48));
        for bad in ["x", "10.0.0.0/33", "10.0.0.0/", "/8"] {
            assert!(cidr(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn an_empty_destination_is_the_default_of_its_family() {
        let wanted =
            |family: IPFamily| read(&Route { family: family.into(), ..Default::default() }).unwrap().destination;
        assert_eq!(wanted(IPFamily::v4), (Ipv4Addr::UNSPECIFIED.into(), 0));
        assert_eq!(wanted(IPFamily::v6), (Ipv6Addr::UNSPECIFIED.into(), 0));
    }

    #[test]
    fn fields_reach_the_message() {
        let route = Route {
            dest: "10.2.0.0/16".into(),
            gateway: "10.0.0.1".into(),
            source: "10.0.0.5/24".into(),
            scope: 253,
            flags: 4,
            mtu: 1400,
            ..Default::default()
        };
        let message = message(7, &read(&route).unwrap()).unwrap();
        assert_eq!(message.header.scope, RouteScope::Link);
        assert!(message.header.flags.contains(RouteFlags::Onlink));
        assert!(message.attributes.contains(&RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)])));
        let described = describe(&message, &[(7, "eth0".into())]);
        assert_eq!((described.dest.as_str(), described.gateway.as_str()), ("10.2.0.0/16", "10.0.0.1"));
        assert_eq!((described.source.as_str(), described.device.as_str()), ("10.0.0.5", "eth0"));
    }
}
