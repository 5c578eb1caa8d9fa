//! The guest's network, set up as the host says over rtnetlink.

pub mod interface;
pub mod neighbour;
pub mod route;

use std::future::Future;

use futures::TryStreamExt;
use rtnetlink::packet_route::link::{LinkAttribute, LinkMessage};
use rtnetlink::{Handle, LinkUnspec};

use crate::error::{Context, Error, Result};

/// Runs something with a netlink connection of its own.
async fn with_netlink<T, W: Future<Output = Result<T>>>(work: impl FnOnce(Handle) -> W) -> Result<T> {
    let (connection, handle, _) = rtnetlink::new_connection().at("open", "rtnetlink")?;
    let connection = tokio::spawn(connection);
    let result = work(handle).await;
    connection.abort();
    result
}

/// Sets the loopback interface up.
pub async fn loopback_up() -> Result<()> {
    with_netlink(|netlink| async move {
        let up = LinkUnspec::new_with_name("lo").up().build();
        netlink.link().set(up).execute().await.at("set up", "lo")
    })
    .await
}

/// All links.
async fn links(netlink: &Handle) -> Result<Vec<LinkMessage>> {
    netlink.link().get().execute().try_collect().await.at("list", "links")
}

/// The index of a link by its name.
async fn index(netlink: &Handle, name: &str) -> Result<u32> {
    let found = links(netlink).await?.into_iter().find(|link| link_name(link) == name);
    let index = found.map(|link| link.header.index);
    index.ok_or_else(|| Error::not_found(format!("network interface {name:.64}: there is none")))
}

/// A link's name.
fn link_name(link: &LinkMessage) -> &str {
    let name = link.attributes.iter().find_map(|attribute| match attribute {
        LinkAttribute::IfName(name) => Some(name.as_str()),
        _ => None,
    });
    name.unwrap_or_default()
}
