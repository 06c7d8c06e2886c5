//! What holds whatever the network does.

use std::time::Duration;

use proptest::prelude::*;

use super::{Kind, Settings, World};

fn kind() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![
        Kind::Public,
        Kind::Firewalled,
        Kind::FullCone,
        Kind::AddressRestricted,
        Kind::PortRestricted,
        Kind::Poisoned,
        Kind::Symmetric,
        Kind::Blocked,
    ])
}

fn easy() -> impl Strategy<Value = Kind> {
    prop::sample::select(vec![
        Kind::Public,
        Kind::Firewalled,
        Kind::FullCone,
        Kind::AddressRestricted,
        Kind::PortRestricted,
        Kind::Poisoned,
    ])
}

prop_compose! {
    fn settings(kind: impl Fn() -> BoxedStrategy<Kind>)(
        one in kind(),
        other in kind(),
        seed in any::<u64>(),
        delay in 1u64..80,
        relay in 1u64..150,
        loss in 0u64..=30,
        relay_loss in 0u64..=5,
        jitter in 0u64..20,
        offset in 0u64..3_000,
    ) -> Settings {
        Settings {
            kinds: [one, other],
            seed,
            delay: Duration::from_millis(delay),
            relay_delay: Duration::from_millis(relay),
            loss,
            relay_loss,
            jitter: Duration::from_millis(jitter),
            offset: Duration::from_millis(offset),
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 128, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn easy_pairs_get_direct(settings in settings(|| easy().boxed())) {
        let mut world = World::new(settings);
        world.begin_data(Duration::from_millis(20));
        let took = world.until(settings.offset + Duration::from_secs(30), World::both_direct);
        prop_assert!(took.is_some());
        world.check();
    }

    #[test]
    fn promises_are_kept_through_cuts_restarts_and_reboots(
        settings in settings(|| kind().boxed()),
        troubles in prop::collection::vec((0u8..8, 200u64..6_000), 0..8),
    ) {
        let mut world = World::new(settings);
        world.begin_data(Duration::from_millis(20));
        world.run_for(settings.offset + Duration::from_secs(2));
        for (trouble, then) in troubles {
            match trouble {
                0 => world.cut = [true, false],
                1 => world.cut = [true, true],
                2 => world.cut = [false, false],
                3 => world.restart(0),
                4 => world.restart(1),
                5 => world.nodes[0].nat.flush(),
                6 => world.set_relay(false),
                _ => world.set_relay(true),
            }
            world.run_for(Duration::from_millis(then));
        }
        world.check();
    }

    #[test]
    fn a_cut_never_lasts(settings in settings(|| easy().boxed()), both in any::<bool>()) {
        let settings = Settings { loss: settings.loss / 6, relay_loss: 0, ..settings };
        let mut world = World::new(settings);
        world.begin_data(Duration::from_millis(20));
        prop_assert!(world.until(settings.offset + Duration::from_secs(30), World::both_direct).is_some());
        world.run_for(Duration::from_secs(3));
        world.cut = [true, both];
        let demoted = world.until(Duration::from_secs(2), |world| world.nodes.iter().all(|node| !node.is_direct()));
        prop_assert!(demoted.is_some());
        world.run_for(Duration::from_secs(3));
        world.cut = [false; 2];
        prop_assert!(world.until(Duration::from_secs(30), World::both_direct).is_some());
        world.check();
    }
}
