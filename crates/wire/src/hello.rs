//! Who may talk to whom: two nodes must agree on protocol, cluster, model and numerics before any work passes.

use crate::v1::{Hello, Role};
use crate::{Error, PROTOCOL};

/// What every process of a cluster says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Name of the cluster.
    pub cluster: String,
    /// Numerics id: equal ids mean equal bits.
    pub numerics: String,
    /// Digest of the checkpoint.
    pub model: [u8; 32],
    /// Node name.
    pub node: String,
}

impl Identity {
    /// Our hello as `role`, for the link of `pipeline` in `epoch` to (or from) `layers`.
    pub fn hello(&self, role: Role, pipeline: u64, epoch: u64, layers: std::ops::Range<usize>) -> Hello {
        Hello {
            protocol: PROTOCOL,
            cluster: self.cluster.clone(),
            numerics: self.numerics.clone(),
            model_digest: self.model.to_vec().into(),
            role: role.into(),
            node: self.node.clone(),
            pipeline,
            epoch,
            first_layer: layers.start as u32,
            end_layer: layers.end as u32,
        }
    }

    /// Checks a peer's hello against ours.
    ///
    /// # Errors
    /// [`Error::Hello`] naming the first value that differs.
    pub fn check(&self, hello: Option<&Hello>) -> Result<(), Error> {
        let Some(hello) = hello else {
            return Err(Error::Hello {
                peer: "a peer".to_owned(),
                what: "hello",
                theirs: "missing".to_owned(),
                ours: "required".to_owned(),
            });
        };
        let differ = |what, theirs: String, ours: String| {
            let peer = if hello.node.is_empty() { "a peer" } else { &hello.node };
            Err(Error::Hello { peer: peer.to_owned(), what, theirs, ours })
        };
        if hello.protocol != PROTOCOL {
            return differ("protocol version", hello.protocol.to_string(), PROTOCOL.to_string());
        }
        if hello.cluster != self.cluster {
            return differ("cluster", format!("`{}`", hello.cluster), format!("`{}`", self.cluster));
        }
        if hello.model_digest.as_ref() != self.model {
            return differ("model digest", hex(&hello.model_digest), hex(&self.model));
        }
        if hello.numerics != self.numerics {
            return differ("numerics id", format!("`{}`", hello.numerics), format!("`{}`", self.numerics));
        }
        Ok(())
    }
}

/// Lower-case hexadecimal.
pub fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|b| format!("{b:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn identity() -> Identity {
        Identity { cluster: "a".into(), numerics: "cpu-1-bf16-kv32".into(), model: [7; 32], node: "n1".into() }
    }

    #[test]
    fn every_difference_is_refused_by_name() {
        let ours = identity();
        let good = ours.hello(Role::Stage, 1, 1, 0..4);
        assert!(ours.check(Some(&good)).is_ok());
        let with = |change: fn(&mut Hello)| {
            let mut hello = good.clone();
            change(&mut hello);
            ours.check(Some(&hello)).unwrap_err().to_string()
        };
        assert!(with(|h| h.protocol = 2).contains("protocol version is 2"));
        assert!(with(|h| h.cluster = "b".into()).contains("cluster is `b`"));
        assert!(with(|h| h.numerics = "gpu".into()).contains("numerics id is `gpu`"));
        assert!(with(|h| h.model_digest = vec![8; 32].into()).contains("model digest is 0808"));
        assert!(ours.check(None).unwrap_err().to_string().contains("hello is missing"));
    }
}
