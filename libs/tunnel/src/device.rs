//! The TUN device: opened through the `tun` crate, then read and written as a plain file descriptor.
#![expect(
    unsafe_code,
    reason = "device ioctls and taking over the descriptor have no safe form"
)]

use std::io::{self, IoSlice};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, IntoRawFd, OwnedFd};

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::uio::writev;

nix::ioctl_write_int!(tun_set_offload, b'T', 208);
nix::ioctl_write_int!(tun_set_persist, b'T', 203);

/// Bytes of `struct virtio_net_hdr` before every packet.
pub(crate) const VNET_HEADER: usize = 10;
/// The largest packet the kernel hands over, header included: a shorter buffer would truncate it silently.
pub(crate) const MAX_READ: usize = VNET_HEADER + 65_535;

/// An open TUN device with virtio headers, persistent so that its routes outlive the process.
#[derive(Debug)]
pub(crate) struct Tun {
    fd: OwnedFd,
}

impl Tun {
    /// Opens `name`, making it if there is none.
    ///
    /// # Errors
    /// `EBUSY` when another process holds the device, `ENOENT` without `/dev/net/tun`, `EPERM` without `CAP_NET_ADMIN`.
    pub(crate) fn open(name: &str) -> io::Result<Self> {
        let mut config = tun::Configuration::default();
        config.tun_name(name).platform_config(|platform| {
            platform.ensure_root_privileges(false).vnet_hdr(true);
        });
        let device = tun::create(&config).map_err(io::Error::from)?;
        // SAFETY: `into_raw_fd` gives up ownership of an open descriptor, and nothing else holds it.
        let fd = unsafe { OwnedFd::from_raw_fd(device.into_raw_fd()) };
        Self::prepare(&fd)?;
        Ok(Self { fd })
    }

    /// Reads one packet behind its virtio header; `WouldBlock` when there is none.
    pub(crate) fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        nix::unistd::read(&self.fd, buffer).map_err(io::Error::from)
    }

    /// Hands one whole IP packet to the kernel.
    pub(crate) fn write(&self, packet: &[u8]) -> io::Result<()> {
        const PLAIN: [u8; VNET_HEADER] = [0; VNET_HEADER];
        writev(&self.fd, &[IoSlice::new(&PLAIN), IoSlice::new(packet)]).map_err(io::Error::from)?;
        Ok(())
    }

    fn prepare(fd: &OwnedFd) -> io::Result<()> {
        // SAFETY: both requests take their argument by value, and the descriptor is an open TUN device.
        unsafe {
            // An earlier process may have left an offload mask behind; with it, reads would yield unsegmented packets.
            tun_set_offload(fd.as_raw_fd(), 0)?;
            tun_set_persist(fd.as_raw_fd(), 1)?;
        }
        let flags = OFlag::from_bits_truncate(fcntl(fd, FcntlArg::F_GETFL)?);
        fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
        Ok(())
    }
}

impl AsFd for Tun {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }
}
