//! Links and their addresses.

use std::net::IpAddr;
use std::time::Duration;

use futures::TryStreamExt;
use rtnetlink::packet_route::address::{AddressAttribute, AddressHeaderFlags, AddressMessage, AddressScope};
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};
use tokio::time::timeout;

use super::{link_name, links, with_netlink};
use crate::error::{Context, Error, Result};
use crate::protocol::types::{IPAddress, IPFamily, Interface};
use crate::uevent::Uevents;

/// Longest name of a link.
const NAME: usize = 15;

/// Sets up the link with this hardware address; waits `limit` for it, for it may just be plugged in. Returns what was asked for.
///
/// # Errors
/// `INVALID_ARGUMENT`, `NOT_FOUND`.
pub async fn update(interface: Interface, limit: Duration) -> Result<Interface> {
    let wanted = Wanted::read(&interface)?;
    with_netlink(|netlink| async move {
        let link = find(&netlink, &wanted.hardware, limit).await?;
        rename(&netlink, &link, &wanted.name).await?;
        configure(&netlink, link.header.index, &wanted).await?;
        replace_addresses(&netlink, link.header.index, &wanted.addresses).await
    })
    .await?;
    Ok(interface)
}

/// An interface as it was asked for, checked.
struct Wanted {
    hardware: Vec<u8>,
    name: String,
    mtu: Option<u32>,
    no_arp: bool,
    addresses: Vec<(IpAddr, u8)>,
}

impl Wanted {
    fn read(interface: &Interface) -> Result<Self> {
        let name = interface.name.clone();
        let plain = |byte: u8| byte.is_ascii_graphic() && !matches!(byte, b'/' | b':');
        if name.is_empty() || name.len() > NAME || !name.bytes().all(plain) || name == "." || name == ".." {
            return Err(Error::invalid(format!("network interface: name {name:.64?}: not possible")));
        }
        Ok(Self {
            hardware: hardware_address(&interface.hwAddr)?,
            name,
            mtu: u32::try_from(interface.mtu).ok().filter(|mtu| *mtu > 0),
            no_arp: interface.raw_flags & libc::IFF_NOARP.unsigned_abs() != 0,
            addresses: interface.IPAddresses.iter().map(address).collect::<Result<_>>()?,
        })
    }
}

fn hardware_address(text: &str) -> Result<Vec<u8>> {
    let bytes: Option<Vec<u8>> = text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect();
    let bytes = bytes.filter(|bytes| bytes.len() >= 6);
    bytes.ok_or_else(|| {
        Error::invalid(format!("network interface: hardware address {text:.64?}: must be AA:BB:CC:DD:EE:FF"))
    })
}

fn address(address: &IPAddress) -> Result<(IpAddr, u8)> {
    let bad = || {
        Error::invalid(format!(
            "address {:.64}/{:.8}: not an IP address and a prefix length",
            address.address, address.mask
        ))
    };
    let ip: IpAddr = address.address.parse().map_err(|_| bad())?;
    let most = if ip.is_ipv4() { 32 } else { 128 };
    let prefix = address.mask.parse().ok().filter(|prefix| *prefix <= most).ok_or_else(bad)?;
    Ok((ip, prefix))
}

async fn find(netlink: &Handle, hardware: &[u8], limit: Duration) -> Result<LinkMessage> {
    let events = Uevents::subscribe().at("uevents", "network interface")?;
    let search = async {
        loop {
            if let Some(link) = links(netlink).await?.into_iter().find(|link| hardware_of(link) == Some(hardware)) {
                return Ok(link);
            }
            events.changed().await.at("uevents", "network interface")?;
        }
    };
    let none = || Error::not_found(format!("network interface {}: not there after {limit:?}", text(hardware)));
    timeout(limit, search).await.unwrap_or_else(|_| Err(none()))
}

fn hardware_of(link: &LinkMessage) -> Option<&[u8]> {
    link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Address(address) => Some(address.as_slice()),
        _ => None,
    })
}

fn text(hardware: &[u8]) -> String {
    hardware.iter().map(|byte| format!("{byte:02x}")).collect::<Vec<_>>().join(":")
}

/// Gives the link its name; another one that has it must take a name nobody wants.
async fn rename(netlink: &Handle, link: &LinkMessage, name: &str) -> Result<()> {
    if link_name(link) == name {
        return Ok(());
    }
    let holder = links(netlink).await?.into_iter().find(|other| link_name(other) == name);
    if let Some(holder) = holder {
        set_name(netlink, holder.header.index, &format!("moved{}", holder.header.index)).await?;
    }
    set_name(netlink, link.header.index, name).await
}

/// A link must be down to be renamed.
async fn set_name(netlink: &Handle, index: u32, name: &str) -> Result<()> {
    let message = LinkUnspec::new_with_index(index).down().build();
    netlink.link().set(message).execute().await.at("set down", name)?;
    let message = LinkUnspec::new_with_index(index).name(name).build();
    netlink.link().set(message).execute().await.at("rename", name)
}

async fn configure(netlink: &Handle, index: u32, wanted: &Wanted) -> Result<()> {
    let mut message = LinkUnspec::new_with_index(index).arp(!wanted.no_arp).up();
    if let Some(mtu) = wanted.mtu {
        message = message.mtu(mtu);
    }
    netlink.link().set(message.build()).execute().await.at("set up", &wanted.name)
}

/// Addresses the kernel gave the link itself (link-local ones) stay.
async fn replace_addresses(netlink: &Handle, index: u32, wanted: &[(IpAddr, u8)]) -> Result<()> {
    let old = addresses(netlink, index).await?;
    let mut there = Vec::new();
    for message in old.into_iter().filter(|message| message.header.scope != AddressScope::Link) {
        match local(&message) {
            Some(address) if wanted.contains(&address) => there.push(address),
            _ => netlink.address().del(message).execute().await.at("remove", "address")?,
        }
    }
    for (address, prefix) in wanted.iter().filter(|address| !there.contains(address)) {
        let mut add = netlink.address().add(index, *address, *prefix).replace();
        if address.is_ipv6() {
            // The host had it, and looked for others who have it. To look again would keep it useless for a second.
            add.message_mut().header.flags |= AddressHeaderFlags::Nodad;
        }
        add.execute().await.at("add address", format_args!("{address}/{prefix}"))?;
    }
    Ok(())
}

async fn addresses(netlink: &Handle, index: u32) -> Result<Vec<AddressMessage>> {
    netlink.address().get().set_link_index_filter(index).execute().try_collect().await.at("list", "addresses")
}

/// The address itself: with a peer, `IFA_ADDRESS` is the other one's.
fn local(message: &AddressMessage) -> Option<(IpAddr, u8)> {
    let find = |local: bool| {
        message.attributes.iter().find_map(|attribute| match attribute {
            AddressAttribute::Local(address) if local => Some(*address),
            AddressAttribute::Address(address) if !local => Some(*address),
            _ => None,
        })
    };
    Some((find(true).or_else(|| find(false))?, message.header.prefix_len))
}

/// All links with their addresses.
pub async fn list() -> Result<Vec<Interface>> {
    with_netlink(|netlink| async move {
        let mut interfaces = Vec::new();
        for link in links(&netlink).await? {
            let addresses = addresses(&netlink, link.header.index).await?;
            interfaces.push(describe(&link, &addresses));
        }
        Ok(interfaces)
    })
    .await
}

fn describe(link: &LinkMessage, addresses: &[AddressMessage]) -> Interface {
    let mtu = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::Mtu(mtu) => Some(*mtu),
        _ => None,
    });
    Interface {
        device: link_name(link).to_owned(),
        name: link_name(link).to_owned(),
        IPAddresses: addresses.iter().filter_map(local).map(|(ip, prefix)| message(ip, prefix)).collect(),
        mtu: mtu.unwrap_or(0).into(),
        hwAddr: hardware_of(link).map(text).unwrap_or_default(),
        raw_flags: link.header.flags.bits(),
        ..Default::default()
    }
}

fn message(ip: IpAddr, prefix: u8) -> IPAddress {
    let family = if ip.is_ipv4() { IPFamily::v4 } else { IPFamily::v6 };
    IPAddress { family: family.into(), address: ip.to_string(), mask: prefix.to_string(), ..Default::default() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hardware_addresses() {
        assert_eq!(hardware_address("02:00:ca:fe:00:01").unwrap(), [2, 0, 0xca, 0xfe, 0, 1]);
        assert_eq!(text(&[2, 0, 0xca, 0xfe, 0, 1]), "02:00:ca:fe:00:01");
        for bad in ["", "02:00", "xx:00:00:00:00:00", "02-00-ca-fe-00-01"] {
            assert!(hardware_address(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn addresses_and_prefixes() {
        let parse =
            |ip: &str, mask: &str| address(&IPAddress { address: ip.into(), mask: mask.into(), ..Default::default() });
        assert_eq!(parse("10.1.2.3", "24").unwrap(), ("10.1.2.3".parse().unwrap(), 24));
        assert_eq!(parse("fd00::1", "64").unwrap(), ("fd00::1".parse().unwrap(), 64));
        for (ip, mask) in [("10.1.2.3", "33"), ("10.1.2", "24"), ("fd00::1", "129"), ("10.0.0.1", "")] {
            assert!(parse(ip, mask).is_err(), "{ip}/{mask}");
        }
    }

    #[test]
    fn impossible_names() {
        let wanted = |name: &str| {
            Wanted::read(&Interface { name: name.into(), hwAddr: "02:00:00:00:00:01".into(), ..Default::default() })
        };
        wanted("eth0").unwrap();
        for name in ["", "a/b", "..", "sixteen-letters-", "a b"] {
            assert!(wanted(name).is_err(), "{name}");
        }
    }
}
