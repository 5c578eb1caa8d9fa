//! Taking away what was made on network interfaces, in their network namespace, over raw rtnetlink: the links themselves, and what
//! redirects the frames that come in at others.

use std::fs::File;
use std::path::Path;

use rustix::fd::{AsFd, OwnedFd};
use rustix::io::Errno;
use rustix::net::netdevice::{index_to_name, name_to_index};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, recv, send, socket_with};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use crate::ledger::Link;

const RTM_DELLINK: u16 = 17;
const RTM_DELQDISC: u16 = 37;
const NLM_F_REQUEST: u16 = 1;
const NLM_F_ACK: u16 = 4;
const NLMSG_ERROR: u16 = 2;
/// Of nlmsghdr.
const HEADER_LEN: usize = 16;
/// linux/pkt_sched.h: what comes in at a link, and the handle of the one queueing discipline that can be there.
const TC_H_INGRESS: u32 = 0xFFFF_FFF1;
const INGRESS_HANDLE: u32 = 0xFFFF_0000;

/// Delete the link, if its name and its index still belong together.
pub fn delete_link(link: &Link) -> Result<(), String> {
    delete(link, |index| request(RTM_DELLINK, &[&[0; 4], &index.to_ne_bytes(), &[0; 8]]), &[Errno::NODEV])
}

/// Delete the ingress queueing discipline of the link, and with it its filters; the link is somebody else's and stays.
pub fn delete_ingress(link: &Link) -> Result<(), String> {
    let message = |index: u32| {
        let (index, handle, parent) = (index.to_ne_bytes(), INGRESS_HANDLE.to_ne_bytes(), TC_H_INGRESS.to_ne_bytes());
        request(RTM_DELQDISC, &[&[0; 4], &index, &handle, &parent, &[0; 4]])
    };
    // The kernel's words for "there is none", by version.
    delete(link, message, &[Errno::NODEV, Errno::NOENT, Errno::INVAL])
}

/// `gone` are the answers that mean that there was nothing to do.
fn delete(link: &Link, message: impl Fn(u32) -> Vec<u8>, gone: &[Errno]) -> Result<(), String> {
    let Some(sockets) = Sockets::open_in(link.netns.as_deref())? else { return Ok(()) };
    let Some(index) = sockets.find(link)? else { return Ok(()) };
    match sockets.ask(&message(index))? {
        Some(error) if !gone.contains(&error) => Err(format!("delete: {error}")),
        _ => Ok(()),
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

    /// What the kernel answers to a request; None is success.
    fn ask(&self, message: &[u8]) -> Result<Option<Errno>, String> {
        send(&self.netlink, message, SendFlags::empty()).map_err(|error| format!("send to netlink: {error}"))?;
        let mut reply = [0; 4096];
        let (_, size) = recv(&self.netlink, &mut reply, RecvFlags::empty())
            .map_err(|error| format!("read from netlink: {error}"))?;
        Ok(match acknowledgement(reply.get(..size).unwrap_or(&reply))? {
            0 => None,
            code => Some(Errno::from_raw_os_error(-code)),
        })
    }
}

fn enter(netns: File) -> Result<(), Errno> {
    move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network))
}

/// A message of this kind, whose body is `parts`.
fn request(kind: u16, parts: &[&[u8]]) -> Vec<u8> {
    let body = parts.concat();
    let mut bytes = Vec::with_capacity(HEADER_LEN + body.len());
    bytes.extend(u32::try_from(HEADER_LEN + body.len()).unwrap_or(u32::MAX).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend((NLM_F_REQUEST | NLM_F_ACK).to_ne_bytes());
    bytes.extend([0; 8]); // sequence number, port
    bytes.extend(body);
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
