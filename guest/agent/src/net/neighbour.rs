//! Entries of the neighbour table.

use std::net::IpAddr;

use rtnetlink::packet_route::neighbour::{NeighbourFlags, NeighbourState};

use super::{index, with_netlink};
use crate::error::{Context, Error, Result};
use crate::protocol::types::ARPNeighbor;

/// Adds entries, or replaces those that are there.
pub async fn add(neighbours: Vec<ARPNeighbor>) -> Result<()> {
    let wanted = neighbours.iter().map(read).collect::<Result<Vec<_>>>()?;
    with_netlink(|netlink| async move {
        for entry in wanted {
            let device = index(&netlink, &entry.device).await?;
            let mut add =
                netlink.neighbours().add(device, entry.address).replace().state(entry.state).flags(entry.flags);
            if !entry.hardware.is_empty() {
                add = add.link_layer_address(&entry.hardware);
            }
            add.execute().await.at("add neighbour", entry.address)?;
        }
        Ok(())
    })
    .await
}

struct Wanted {
    device: String,
    address: IpAddr,
    hardware: Vec<u8>,
    state: NeighbourState,
    flags: NeighbourFlags,
}

fn read(neighbour: &ARPNeighbor) -> Result<Wanted> {
    let bad = |what: &str, text: &str| Error::invalid(format!("neighbour: {what} {text:.64?}: not one"));
    let address = neighbour.toIPAddress.address.split('/').next().unwrap_or_default();
    let hardware: Option<Vec<u8>> = match neighbour.lladdr.as_str() {
        "" => Some(Vec::new()),
        text => text.split(':').map(|part| u8::from_str_radix(part, 16).ok()).collect(),
    };
    Ok(Wanted {
        device: neighbour.device.clone(),
        address: address.parse().map_err(|_| bad("address", address))?,
        hardware: hardware.ok_or_else(|| bad("hardware address", &neighbour.lladdr))?,
        state: match u16::try_from(neighbour.state).map_err(|_| bad("state", &neighbour.state.to_string()))? {
            0 => NeighbourState::Permanent,
            state => NeighbourState::from(state),
        },
        flags: NeighbourFlags::from_bits_truncate(u8::try_from(neighbour.flags).unwrap_or(0)),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::types::IPAddress;

    #[test]
    fn entries() {
        let mut neighbour = ARPNeighbor {
            device: "eth0".into(),
            lladdr: "02:00:00:00:00:0a".into(),
            state: 0x80,
            ..Default::default()
        };
        neighbour.toIPAddress = Some(IPAddress { address: "169.254.1.1".into(), ..Default::default() }).into();
        let wanted = read(&neighbour).unwrap();
        assert_eq!(wanted.hardware, [2, 0, 0, 0, 0, 10]);
        assert_eq!(wanted.state, NeighbourState::Permanent);
        neighbour.lladdr = "zz".into();
        assert!(read(&neighbour).is_err());
    }
}
