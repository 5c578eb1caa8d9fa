//! Deleting a network interface, in its network namespace, over raw rtnetlink.

use std::fs::File;
use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::ledger::Link;

const RTM_DELLINK: u16 = 17;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
/// nlmsghdr (16) and ifinfomsg (16).
const REQUEST_LEN: u32 = 32;

/// Delete the link, if its name and its index still belong together.
pub fn delete(link: &Link) -> Result<(), String> {
    let Some(sockets) = Sockets::open_in(link.netns.as_deref())? else { return Ok(()) };
    match sockets.find(link)? {
        Some(index) => sockets.delete(index),
        None => Ok(()),
    }
}

/// Sockets belong to the network namespace they were made in, whatever their maker joins afterwards.
struct Sockets {
    netlink: OwnedFd,
    query: OwnedFd,
}

impl Sockets {
    /// None when the namespace is gone, and its links with it.
    fn open_in(netns: Option<&Path>) -> Result<Option<Self>, String> {
        let Some(netns) = netns else { return Self::open().map(Some) };
        let target = match File::open(netns) {
            Ok(target) => target,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
            Err(error) => return Err(format!("open {}: {error}", netns.display())),
        };
        let home = File::open("/proc/thread-self/ns/net").map_err(|error| format!("open our own netns: {error}"))?;
        match enter(target) {
            Ok(()) => {}
            // A plain file: the mount that made it a namespace is gone.
            Err(Errno::INVAL) => return Ok(None),
            Err(error) => return Err(format!("enter {}: {error}", netns.display())),
        }
        let sockets = Self::open();
        enter(home).map_err(|error| format!("return to our own netns: {error}"))?;
        sockets.map(Some)
    }

    fn open() -> Result<Self, String> {
        let open = |family, kind, protocol| {
            socket_with(family, kind, SocketFlags::CLOEXEC, protocol).map_err(|error| format!("open socket: {error}"))
        };
        Ok(Self {
            // Protocol 0 is NETLINK_ROUTE.
            netlink: open(AddressFamily::NETLINK, SocketType::RAW, None)?,
            query: open(AddressFamily::INET, SocketType::DGRAM, None)?,
        })
    }

    /// The index to delete; None when there is no such link any more.
    fn find(&self, link: &Link) -> Result<Option<u32>, String> {
        let found = match link.ifindex {
            Some(index) => index_to_name(&self.query, index).map(|name| (name == link.name).then_some(index)),
            None => name_to_index(&self.query, &link.name).map(Some),
        };
        match found {
            Ok(found) => Ok(found),
            Err(Errno::NODEV | Errno::NXIO) => Ok(None),
            Err(error) => Err(format!("look it up: {error}")),
        }
    }

    fn delete(&self, index: u32) -> Result<(), String> {
        send(&self.netlink, &request(index), SendFlags::empty())
            .map_err(|error| format!("send to netlink: {error}"))?;
        let mut reply = [0; 4096];
        let (_, size) = recv(&self.netlink, &mut reply, RecvFlags::empty())
            .map_err(|error| format!("read from netlink: {error}"))?;
        match acknowledgement(reply.get(..size).unwrap_or(&reply))? {
            0 => Ok(()),
            code => match Errno::from_raw_os_error(-code) {
                Errno::NODEV => Ok(()),
                error => Err(format!("delete: {error}")),
            },
        }
    }
}

fn enter(netns: File) -> Result<(), Errno> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
}

fn request(index: u32) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(REQUEST_LEN as usize);
    bytes.extend(REQUEST_LEN.to_ne_bytes());
    bytes.extend(RTM_DELLINK.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend([0; 8]); // sequence number, port
    bytes.extend([0; 4]); // family, padding, type
    bytes.extend(index.to_ne_bytes());
    bytes.extend([0; 8]); // flags, change mask
    bytes
}

/// The (negated) errno of a netlink acknowledgement.
fn acknowledgement(reply: &[u8]) -> Result<i32, String> {
    let kind = reply.get(4..6).and_then(|bytes| bytes.try_into().ok()).map(u16::from_ne_bytes);
    let code = reply.get(16..20).and_then(|bytes| bytes.try_into().ok()).map(i32::from_ne_bytes);
    match (kind, code) {
        (Some(NLMSG_ERROR), Some(code)) => Ok(code),
        _ => Err("netlink answered something else than an acknowledgement".to_owned()),
    }
}
