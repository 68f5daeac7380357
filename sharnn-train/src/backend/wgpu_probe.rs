//! Whether there is a device for Burn's wgpu backend, asked before its first use: without one it panics.

use burn::backend::wgpu::WgpuRuntime;
use burn::backend::wgpu::graphics::{AutoGraphicsApi, GraphicsApi};
use burn_cubecl::cubecl::Runtime;

use super::MissingPiece;

/// # Errors
/// [`MissingPiece::Adapter`]
pub(super) fn check() -> Result<(), MissingPiece> {
    let api = AutoGraphicsApi::backend();
    found(WgpuRuntime::enumerate_all_devices(&api).len(), &format!("{api:?}"))
}

fn found(devices: usize, api: &str) -> Result<(), MissingPiece> {
    if devices == 0 { Err(MissingPiece::Adapter { api: api.into() }) } else { Ok(()) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_without_a_device_says_so() {
        let error = found(0, "Vulkan").unwrap_err().to_string();
        assert!(error.starts_with("no GPU is found by Vulkan: install"), "{error}");
        assert_eq!(found(1, "Vulkan"), Ok(()));
    }
}
