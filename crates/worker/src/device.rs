//! What a node computes on: the one place that knows which devices there are. Results differ by device class and not by device,
//! so the class stands in every numerics id.

use std::fmt;
use std::str::FromStr;

use janus_kernels::{KvDtype, WeightFormat, kernel_version};

/// A device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Device {
    /// The cores of this machine, through `janus-kernels`.
    #[default]
    Cpu,
}

impl Device {
    /// Its class, as member records and numerics ids have it.
    pub fn class(self) -> &'static str {
        match self {
            Device::Cpu => "cpu",
        }
    }

    /// The numerics id of nodes on this device: processes with equal ids compute equal bits. All CPUs of one weight format and KV
    /// type share one; it names the kernel version, so it changes whenever bits may.
    pub fn numerics(self, weights: WeightFormat, kv: KvDtype) -> String {
        format!("{}-k{}-{}-kv-{}", self.class(), kernel_version(weights), weights.name(), kv.name())
    }
}

impl fmt::Display for Device {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.class())
    }
}

impl FromStr for Device {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text {
            "cpu" => Ok(Device::Cpu),
            gpu if gpu == "cuda" || gpu.starts_with("cuda:") => {
                Err("this program has no engine for GPUs; it computes on `cpu`".to_owned())
            }
            _ => Err("not a device; it computes on `cpu`".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn devices_are_named_as_they_are_asked_for() {
        assert_eq!("cpu".parse::<Device>().map(|device| device.to_string()).as_deref(), Ok("cpu"));
        assert!("cuda:0".parse::<Device>().unwrap_err().contains("GPU"));
        assert!("cudart".parse::<Device>().unwrap_err().starts_with("not a device"));
        assert_eq!(Device::Cpu.numerics(WeightFormat::Q8, KvDtype::Bf16), "cpu-k2-q8-kv-bf16");
    }
}
