//! Reboots of a machine made of files, whose logind is on a private bus and
//! whose kernel takes whatever it is given.

use std::ffi::CStr;
use std::fs::File;
use std::io::{self, Read};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use gptprio::USR_TYPE;
use locksmith::bus::{Inhibition, RefusedReboot};
use locksmith::reboot::kexec::{KexecError, KexecPlan, Loader};
use locksmith::reboot::{Begun, RebootError, Rebooter};
use locksmith::semaphore::Mode;

use crate::login::{Age, Logind, Refusal};
use crate::machine::{B, Bits, Machine};
use crate::support::PrivateBus;

const RUNNING: Bits = (1, 0, true);
const FRESH: Bits = (2, 1, false);
const SPENT: Bits = (2, 0, false);

/// In the place of the running kernel, which in most places where tests run has
/// no kexec.
struct Kernel {
    machine: Arc<Machine>,
    /// What is staged: kernel, initrd, command line.
    staged: Mutex<Option<[String; 3]>>,
    /// The slots in the moment of staging.
    seen: Mutex<Option<[Bits; 2]>>,
    /// What happens while it stages.
    meanwhile: fn(&Machine) -> io::Result<()>,
}

impl Loader for Kernel {
    fn load(&self, kernel: &File, initrd: Option<&File>, words: &CStr) -> io::Result<()> {
        let text = |mut file: &File| {
            let mut text = String::new();
            file.read_to_string(&mut text).unwrap();
            text
        };
        *self.seen.lock().unwrap() = Some(self.machine.bits());
        (self.meanwhile)(&self.machine)?;
        *self.staged.lock().unwrap() = Some([
            text(kernel),
            initrd.map(text).unwrap_or_default(),
            words.to_str().unwrap().to_owned(),
        ]);
        Ok(())
    }

    fn unload(&self) -> io::Result<()> {
        *self.staged.lock().unwrap() = None;
        Ok(())
    }
}

/// A machine with its logind and its kernel.
struct Scene {
    machine: Arc<Machine>,
    logind: Logind,
    kernel: Arc<Kernel>,
    rebooter: Rebooter,
    _peer: zbus::Connection,
    _bus: PrivateBus,
}

impl Scene {
    async fn set(
        machine: Machine,
        refusal: Option<Refusal>,
        meanwhile: fn(&Machine) -> io::Result<()>,
    ) -> Self {
        let machine = Arc::new(machine);
        let bus = PrivateBus::start();
        let mut logind = Logind::of(Age::V257);
        logind.refusal = refusal;
        let (peer, login) = logind.start(&bus).await;
        let kernel = Arc::new(Kernel {
            machine: Arc::clone(&machine),
            staged: Mutex::default(),
            seen: Mutex::default(),
            meanwhile,
        });
        let rebooter = Rebooter::with_loader(machine.root(), login, USR_TYPE, kernel.clone());
        Self {
            machine,
            logind,
            kernel,
            rebooter,
            _peer: peer,
            _bus: bus,
        }
    }

    async fn of(machine: Machine) -> Self {
        Self::set(machine, None, |_| Ok(())).await
    }

    async fn reboot(&self, mode: Mode) -> Result<Begun, RebootError> {
        self.rebooter.reboot(mode, Inhibition::Respect, "why").await
    }

    fn staged(&self) -> Option<[String; 3]> {
        self.kernel.staged.lock().unwrap().clone()
    }

    /// Nothing is staged, nothing was spent, and logind was asked for a reboot
    /// through the firmware.
    async fn goes_through_the_firmware(&self) {
        let before = self.machine.bits();
        let begun = self.reboot(Mode::Kexec).await.unwrap();
        assert_eq!(begun.mode(), Mode::Firmware);
        assert_eq!(self.logind.reboots(), ["RebootWithFlags 0x1"]);
        assert_eq!(self.staged(), None);
        // What another program did meanwhile stays.
        let after = self.machine.bits();
        assert!(after == before || after[1] != SPENT, "{after:?}");
        self.rebooter.give_up(begun).await;
        assert_eq!(self.machine.bits(), after);
    }
}

fn plan(machine: &Machine) -> Result<KexecPlan, KexecError> {
    KexecPlan::make(&machine.root(), USR_TYPE)
}

#[test]
fn the_plan_is_what_the_boot_loader_would_do() {
    for sector_size in [512, 4096] {
        let machine = Machine::new(sector_size, RUNNING, FRESH);
        machine.write("/boot/flatcar/initrd-b", "");
        let plan = plan(&machine).unwrap();
        let root = machine.root();
        assert_eq!(plan.disk, root.path("/dev/sda").unwrap());
        assert_eq!(plan.number, 4);
        assert_eq!(plan.kernel, root.path("/boot/flatcar/vmlinuz-b").unwrap());
        assert_eq!(
            plan.initrd,
            Some(root.path("/boot/flatcar/initrd-b").unwrap())
        );
        assert_eq!(
            plan.command_line,
            format!("BOOT_IMAGE=/flatcar/vmlinuz-b verity.usr=PARTUUID={B} quiet")
        );
        assert_eq!(machine.bits(), [RUNNING, FRESH], "planning changes nothing");
    }

    // The new slot's tries are spent, so the running one is next: no way round
    // the firmware, which has the same choice.
    let machine = Machine::new(512, RUNNING, SPENT);
    let refused = plan(&machine).unwrap_err().to_string();
    assert!(refused.contains("the one that runs"), "{refused}");

    // A machine that was CoreOS has its kernels in the old folder.
    let machine = Machine::updated();
    machine.write("/boot/coreos/vmlinuz-a", "");
    machine.write("/boot/coreos/vmlinuz-b", "kernel");
    let plan = plan(&machine).unwrap();
    let kernel = machine.root().path("/boot/coreos/vmlinuz-b").unwrap();
    assert_eq!((plan.number, plan.kernel, plan.initrd), (4, kernel, None));
}

#[test]
fn the_system_hash_comes_with_the_next_kernel() {
    let machine = Machine::updated();
    let (old, new) = ("0".repeat(64), "ab".repeat(32));
    let line = format!(
        "verity.usr=PARTUUID={} verity.usrhash={old}",
        crate::machine::A
    );
    machine.write("/proc/cmdline", line);
    let refused = plan(&machine).unwrap_err();
    assert_eq!(
        refused.to_string(),
        "cannot make the next command line: the next kernel has no hash of its system, the \
         running one has"
    );
    machine.write("/boot/flatcar/usrhash-b", format!("{new}\n"));
    let expected = format!("verity.usr=PARTUUID={B} verity.usrhash={new}");
    assert_eq!(plan(&machine).unwrap().command_line, expected);
    if !matches!(std::env::consts::ARCH, "x86_64" | "aarch64") {
        return;
    }
    let mut kernel = vec![0; 4096];
    for place in [0x40, 0x200] {
        kernel[place..place + 64].copy_from_slice(new.as_bytes());
    }
    machine.write("/boot/flatcar/vmlinuz-b", kernel);
    assert_eq!(plan(&machine).unwrap().command_line, expected);
    machine.remove("/boot/flatcar/usrhash-b");
    assert_eq!(plan(&machine).unwrap().command_line, expected);

    machine.write("/boot/flatcar/usrhash-b", &old);
    let refused = plan(&machine).unwrap_err().to_string();
    assert!(refused.contains("install the system again"), "{refused}");
}

#[test]
fn what_keeps_from_the_next_kernel_is_told() {
    type Row<'a> = (&'a dyn Fn(&Machine), &'a str);
    let table: [Row<'_>; 7] = [
        (
            &|machine| machine.write("/boot/flatcar/vmlinuz-b", ""),
            "vmlinuz-b is empty",
        ),
        (
            &|machine| machine.write("/proc/sys/kernel/kexec_load_disabled", "1\n"),
            "kexec is switched off: kernel.kexec_load_disabled is 1",
        ),
        (
            &|machine| machine.write("/proc/self/mountinfo", ""),
            "the system does not run from a boot slot",
        ),
        (
            &|machine| machine.remove("/boot/flatcar/vmlinuz-b"),
            "/boot/flatcar/vmlinuz-b",
        ),
        (
            &|machine| machine.remove("/proc/cmdline"),
            "cannot read /proc/cmdline",
        ),
        (
            &|machine| machine.write("/proc/cmdline", "quiet"),
            "does not name the running slot",
        ),
        (&|machine| machine.write("/dev/sda", "short"), "dev/sda"),
    ];
    for (spoil, expected) in table {
        let machine = Machine::updated();
        machine.write("/proc/sys/kernel/kexec_load_disabled", "0\n");
        plan(&machine).unwrap();
        spoil(&machine);
        let refused = plan(&machine).unwrap_err().to_string();
        assert!(refused.contains(expected), "{refused}");
    }
    // A choice that the boot loader makes only after a delay and a word.
    for (a, b) in [((1, 0, false), (2, 0, false)), ((0, 0, true), (0, 0, true))] {
        let refused = plan(&Machine::new(512, a, b)).unwrap_err();
        assert!(matches!(refused, KexecError::NoChoice { .. }), "{refused}");
    }
}

#[test]
fn a_refusal_of_the_kernel_names_its_lockdown() {
    struct Locked;
    impl Loader for Locked {
        fn load(&self, _: &File, _: Option<&File>, _: &CStr) -> io::Result<()> {
            Err(io::ErrorKind::PermissionDenied.into())
        }
        fn unload(&self) -> io::Result<()> {
            Ok(())
        }
    }
    let machine = Machine::updated();
    let refused = |machine: &Machine| {
        let refused = plan(machine).unwrap().stage(&machine.root(), &Locked);
        refused.unwrap_err().to_string()
    };
    assert!(
        refused(&machine).ends_with("vmlinuz-b"),
        "{}",
        refused(&machine)
    );
    let lockdown = "/sys/kernel/security/lockdown";
    machine.write(lockdown, "none [integrity] confidentiality\n");
    assert!(
        refused(&machine)
            .ends_with("vmlinuz-b; it is locked down (integrity), so the image has to be signed")
    );
    machine.write(lockdown, "[none] integrity confidentiality\n");
    assert!(refused(&machine).ends_with("vmlinuz-b"));
}

#[tokio::test]
async fn the_try_is_spent_after_staging_and_given_back_when_nothing_happens() {
    let scene = Scene::of(Machine::updated()).await;
    let begun = scene.reboot(Mode::Kexec).await.unwrap();
    assert_eq!(begun.mode(), Mode::Kexec);
    assert_eq!(scene.logind.reboots(), ["RebootWithFlags 0x3"]);
    assert_eq!(*scene.kernel.seen.lock().unwrap(), Some([RUNNING, FRESH]));
    assert_eq!(scene.machine.bits(), [RUNNING, SPENT]);
    let [kernel, initrd, words] = scene.staged().unwrap();
    assert_eq!((kernel.as_str(), initrd.as_str()), ("kernel of B", ""));
    assert!(words.contains(B), "{words}");

    scene.rebooter.give_up(begun).await;
    assert_eq!(scene.machine.bits(), [RUNNING, FRESH]);
    assert_eq!(scene.staged(), None);
}

#[tokio::test]
async fn a_stop_before_the_reboot_is_accepted_costs_no_try_and_leaves_nothing_staged() {
    let slow = |_: &Machine| {
        std::thread::sleep(Duration::from_millis(500));
        Ok(())
    };
    let scene = Scene::set(Machine::updated(), None, slow).await;
    let reboot = scene.reboot(Mode::Kexec);
    let stopped = tokio::time::timeout(Duration::from_millis(50), reboot).await;
    assert!(stopped.is_err(), "it was still staging");
    // Staging goes on by itself, spends the try, and finds nobody who waits for it. It
    // has ended when nobody but the scene and its rebooter have the kernel.
    let ended = async {
        while Arc::strong_count(&scene.kernel) > 2 {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    let ended = tokio::time::timeout(Duration::from_secs(20), ended).await;
    assert!(ended.is_ok(), "it never ends");
    assert!(scene.kernel.seen.lock().unwrap().is_some(), "it staged");
    assert_eq!(scene.machine.bits(), [RUNNING, FRESH]);
    assert_eq!(scene.staged(), None);
    assert_eq!(scene.logind.reboots(), [""; 0]);
}

#[tokio::test]
async fn a_daemon_that_is_killed_leaves_the_try_to_the_next_one() {
    let scene = Scene::of(Machine::updated()).await;
    let note = scene.machine.path("/run/update-engine/spent-try");
    let begun = scene.reboot(Mode::Kexec).await.unwrap();
    // Nothing of it is dropped, as by SIGKILL.
    std::mem::forget(begun);
    assert_eq!(scene.machine.bits(), [RUNNING, SPENT]);
    assert!(scene.rebooter.was_interrupted());
    scene.rebooter.recover().await;
    assert_eq!(scene.machine.bits(), [RUNNING, FRESH]);
    assert_eq!(scene.staged(), None);
    assert!(!scene.rebooter.was_interrupted());

    // Once, and not against what somebody else did meanwhile.
    scene.rebooter.recover().await;
    assert_eq!(scene.machine.bits(), [RUNNING, FRESH]);
    std::mem::forget(scene.reboot(Mode::Kexec).await.unwrap());
    scene.machine.set_b((0, 0, false));
    scene.rebooter.recover().await;
    assert_eq!(scene.machine.bits(), [RUNNING, (0, 0, false)]);
    assert!(!note.exists());

    // Killed while it wrote the note: nothing was spent yet.
    scene.machine.write("/run/update-engine/spent-try", "4 2");
    scene.rebooter.recover().await;
    assert_eq!(scene.machine.bits(), [RUNNING, (0, 0, false)]);
}

#[tokio::test]
async fn a_try_that_cannot_be_noted_is_not_spent() {
    let machine = Machine::updated();
    machine.write("/run/update-engine", "no folder");
    Scene::of(machine).await.goes_through_the_firmware().await;
}

#[tokio::test]
async fn a_refused_reboot_costs_no_try_and_leaves_nothing_staged() {
    let refusal = Refusal::Denied("no".into());
    let scene = Scene::set(Machine::updated(), Some(refusal), |_| Ok(())).await;
    let refused = scene.reboot(Mode::Kexec).await.unwrap_err();
    assert!(
        matches!(refused, RebootError::Refused(RefusedReboot::Denied(_))),
        "{refused}"
    );
    assert!(scene.kernel.seen.lock().unwrap().is_some(), "it was staged");
    assert_eq!(scene.machine.bits(), [RUNNING, FRESH]);
    assert_eq!(scene.staged(), None);
}

#[tokio::test]
async fn what_fails_on_the_way_ends_in_the_firmware_with_the_try_unspent() {
    // The kernel does not want it.
    let scene = Scene::set(Machine::updated(), None, |_| {
        Err(io::ErrorKind::Unsupported.into())
    });
    scene.await.goes_through_the_firmware().await;
    // The slots change after the choice.
    let scene = Scene::set(Machine::updated(), None, |machine| {
        machine.set_b((0, 0, false));
        Ok(())
    });
    scene.await.goes_through_the_firmware().await;
    // There is no plan.
    let machine = Machine::updated();
    machine.write("/proc/cmdline", "quiet");
    Scene::of(machine).await.goes_through_the_firmware().await;
}

#[tokio::test]
async fn a_slot_that_was_successful_has_no_try_to_spend() {
    let scene = Scene::of(Machine::new(512, (1, 0, true), (2, 0, true))).await;
    let disk = || std::fs::read(scene.machine.path("/dev/sda")).unwrap();
    let before = disk();
    let begun = scene.reboot(Mode::Kexec).await.unwrap();
    assert_eq!(begun.mode(), Mode::Kexec);
    scene.rebooter.give_up(begun).await;
    assert_eq!(disk(), before);
}

#[tokio::test]
async fn what_others_did_to_the_slot_is_not_undone() {
    let scene = Scene::of(Machine::updated()).await;
    let begun = scene.reboot(Mode::Kexec).await.unwrap();
    scene.machine.set_b((0, 0, false));
    scene.rebooter.give_up(begun).await;
    assert_eq!(scene.machine.bits(), [RUNNING, (0, 0, false)]);
}

#[tokio::test]
async fn user_space_alone_restarts_only_when_the_kernel_stays() {
    let same_kernel = |machine: Machine| {
        machine.write("/boot/flatcar/vmlinuz-b", "kernel of A");
        machine
    };
    let no_slots = |machine: Machine| {
        machine.write("/proc/self/mountinfo", "");
        machine
    };
    let no_kernel = |machine: Machine| {
        machine.remove("/boot/flatcar/vmlinuz-b");
        machine
    };
    for (machine, mode) in [
        (Machine::updated(), Mode::Firmware),
        (no_kernel(Machine::updated()), Mode::Firmware),
        (same_kernel(Machine::updated()), Mode::Soft),
        (no_slots(Machine::updated()), Mode::Soft),
        // Nothing but the running slot would boot.
        (Machine::new(512, (2, 0, true), RUNNING), Mode::Soft),
    ] {
        let scene = Scene::of(machine).await;
        let begun = scene.reboot(Mode::Soft).await.unwrap();
        assert_eq!(begun.mode(), mode);
        let call = match mode {
            Mode::Soft => "RebootWithFlags 0x5",
            _ => "RebootWithFlags 0x1",
        };
        assert_eq!(scene.logind.reboots(), [call]);
    }
}
