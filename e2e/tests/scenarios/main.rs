//! What two linked sites must do, with the real programs in the lab. All in one program, so that long ones run side by side.

mod capture;
mod cleanup;
mod cuts;
mod demo;
mod failover;
mod firewall;
mod hostile;
mod longrun;
mod mtu;
mod refusals;
mod restart;
mod table;
