//! What machines are put through. A scenario that does not end as it should is an
//! error, with the end of the console in it.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, OnceLock, PoisonError, Weak};
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use fastrand::Rng;
use system_tests::deadline::poll_every;
use system_tests::disk::{Disk, Slot};
use system_tests::etcd::Cluster;
use system_tests::process::run;
use system_tests::programs::program;
use tempfile::TempDir;

use crate::LOOK;
use crate::chain::{Chain, boot_files};
use crate::debian::Debian;
use crate::guest::Fault;
use crate::layout::{Content, SIZES};
use crate::machine::{BOOT_LIMIT, Machine, SHELL_LIMIT};
use crate::releases::{FIRST, HOST, Identity, Releases};
use crate::write_log::WriteLog;

/// Power cuts after which the disk is only read.
const READ_CUTS: usize = 40;
/// Power cuts after each write to a partition table.
const TABLE_CUTS: usize = 10;
/// Cuts without the sync between the copies of the table, of which one must be fatal.
const MOST_LOST_CUTS: usize = 2000;
/// A place is given back after the soak of a second and some looks at the machine.
const RELEASE_LIMIT: Duration = Duration::from_secs(120);

/// Everything that scenarios share.
#[derive(Debug)]
pub struct Lab {
    debian: Debian,
    releases: Releases,
    stage_zero: OnceLock<Result<Chain, String>>,
    folder: TempDir,
}

/// What goes wrong with a new version.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Trouble {
    /// It was made so.
    Version(Fault),
    /// Its kernel vanishes after it was installed.
    NoKernel,
    /// A byte of its image changes after it was installed.
    FlippedByte,
}

impl Trouble {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Version(Fault::Panics),
        Self::Version(Fault::Hangs),
        Self::Version(Fault::ExitsInit),
        Self::Version(Fault::Unhealthy),
        Self::NoKernel,
        Self::FlippedByte,
    ];

    /// The line of shell that makes it, in slot B.
    fn sabotage(self) -> Option<&'static str> {
        match self {
            Self::Version(_) => None,
            Self::NoKernel => Some("rm /boot/flatcar/vmlinuz-b && busybox sync"),
            Self::FlippedByte => Some(
                "b=$(busybox od -A n -t u1 -j 300 -N 1 /dev/vda4) && \
                 printf \"\\\\$(printf %o $((b ^ 1)))\" | \
                 busybox dd of=/dev/vda4 bs=1 seek=300 conv=notrunc,fsync",
            ),
        }
    }
}

/// What of the partition tables is destroyed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Damage {
    /// First header and table.
    Primary,
    /// Second header and table.
    Backup,
    /// The sector of the first header.
    PrimaryHeader,
    /// The first sector of the first table.
    PrimaryTable,
    /// The sector of the second header.
    BackupHeader,
    /// The first sector of the second table.
    BackupTable,
}

impl Damage {
    /// All of them.
    pub const ALL: [Self; 6] = [
        Self::Primary,
        Self::Backup,
        Self::PrimaryHeader,
        Self::PrimaryTable,
        Self::BackupHeader,
        Self::BackupTable,
    ];

    /// First sector and number of sectors, on a disk of so many.
    fn sectors(self, disk: u64) -> (u64, u64) {
        match self {
            Self::Primary => (1, 33),
            Self::Backup => (disk - 33, 33),
            Self::PrimaryHeader => (1, 1),
            Self::PrimaryTable => (2, 1),
            Self::BackupHeader => (disk - 1, 1),
            Self::BackupTable => (disk - 33, 1),
        }
    }

    /// Destroys it.
    ///
    /// # Errors
    ///
    /// The disk cannot be written.
    pub fn apply(self, disk: &Disk) -> Result<()> {
        use std::os::unix::fs::FileExt as _;
        let file = File::options().write(true).open(disk.path())?;
        let (first, count) = self.sectors(file.metadata()?.len() / 512);
        let garbage = vec![0xa5; usize::try_from(count * 512)?];
        Ok(file.write_all_at(&garbage, first * 512)?)
    }
}

impl Lab {
    /// Packages, programs and the first version: the same for all who are at work at one
    /// time. With the last of them the update server ends and all files go.
    ///
    /// # Errors
    ///
    /// Something is missing.
    pub fn open() -> Result<Arc<Self>> {
        static LAB: Mutex<Weak<Lab>> = Mutex::new(Weak::new());
        let mut lab = LAB.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(open) = lab.upgrade() {
            return Ok(open);
        }
        let new = Arc::new(Self::make()?);
        *lab = Arc::downgrade(&new);
        Ok(new)
    }

    fn make() -> Result<Self> {
        let debian = Debian::unpacked()?;
        let releases = Releases::start(&debian)?;
        Ok(Self {
            debian,
            releases,
            stage_zero: OnceLock::new(),
            folder: TempDir::new()?,
        })
    }

    /// The stage-0 selector, built once: machines of other tests may start from its file.
    ///
    /// # Errors
    ///
    /// It cannot be built.
    pub fn stage_zero(&self) -> Result<Chain> {
        self.stage_zero
            .get_or_init(|| {
                Chain::stage_zero(&self.debian, self.folder.path())
                    .map_err(|error| format!("{error:#}"))
            })
            .clone()
            .map_err(anyhow::Error::msg)
    }

    fn machine(&self, identity: &Identity, chain: &Chain) -> Result<Machine> {
        let content = self.releases.first(identity);
        Machine::new(&identity.track, chain.clone(), content)
    }

    /// `count` updates in a row, from slot to slot: each is installed, booted, marked
    /// successful and reported with the version before it.
    ///
    /// # Errors
    ///
    /// Where it went wrong.
    pub fn updates(&self, chain: &Chain, count: usize) -> Result<()> {
        let identity = Identity::new("updates");
        let mut machine = self.machine(&identity, chain)?;
        machine.start()?;
        let mut before = machine.up()?;
        ensure!(before.version == FIRST, "{before:?}");
        for number in 0..count {
            let version = format!("{}.0.0", number + 2);
            let slot = if number % 2 == 0 { Slot::B } else { Slot::A };
            self.releases.publish(&identity.track, &version, None)?;
            machine.update()?;
            machine.reboot()?;
            let now = machine.up()?;
            ensure!(now.version == version, "{now:?}: {}", machine.last_words());
            ensure!(now.boot_id != before.boot_id, "{now:?}");
            machine.marked(slot)?;
            machine.check()?;
            let parts = ["update complete", "rebooted", &*before.version];
            let event = self.releases.reported(&identity, &version, &parts)?;
            println!(
                "update {} of {count}: {version} runs in slot {}; reported: {}",
                number + 1,
                slot.letter(),
                event.words
            );
            before = now;
        }
        machine.cut()
    }

    /// Updates one machine to one bad version after the other: each falls back, is
    /// reported once and not installed again.
    ///
    /// # Errors
    ///
    /// Where it went wrong.
    pub fn troubles(&self, chain: &Chain, troubles: &[Trouble]) -> Result<()> {
        let identity = Identity::new("troubles");
        let mut machine = self.machine(&identity, chain)?;
        machine.start()?;
        machine.up()?;
        for (number, trouble) in troubles.iter().copied().enumerate() {
            self.trouble(&identity, &mut machine, number, trouble)
                .with_context(|| format!("{trouble:?}"))?;
        }
        machine.cut()
    }

    /// The bad version 2.`number`.0, on a machine that has had as many before.
    fn trouble(
        &self,
        identity: &Identity,
        machine: &mut Machine,
        number: usize,
        trouble: Trouble,
    ) -> Result<()> {
        let version = format!("2.{number}.0");
        let fault = match trouble {
            Trouble::Version(fault) => Some(fault),
            Trouble::NoKernel | Trouble::FlippedByte => None,
        };
        self.releases.publish(&identity.track, &version, fault)?;
        machine.update()?;
        if let Some(line) = trouble.sabotage() {
            machine.shell(line)?;
        }
        let (boots, resets) = (machine.boots(Slot::B)?, machine.resets());
        machine.reboot()?;
        let mut up = machine.up_within(2 * BOOT_LIMIT)?;
        if trouble == Trouble::Version(Fault::Unhealthy) {
            // It runs, and gives up by itself.
            ensure!(up.version == version, "{up:?}: {}", machine.last_words());
            up = machine.up_within(2 * BOOT_LIMIT)?;
        }
        ensure!(up.version == FIRST, "{up:?}: {}", machine.last_words());
        // It had one try, or none where the selector saw that nothing is there to start;
        // the way into it is one reset, the way back another.
        let boots = machine.boots(Slot::B)? - boots;
        let resets = machine.resets() - resets;
        let tries = usize::from(trouble != Trouble::NoKernel);
        ensure!(
            (boots, resets) == (tries, 1 + tries),
            "{boots} boots, {resets} resets: {}",
            machine.last_words()
        );
        // Twice, as it must neither be told nor installed a second time.
        machine.check()?;
        machine.check()?;
        let status = machine.shell("update_engine_client -status")?;
        ensure!(status.contains("UPDATE_STATUS_IDLE"), "{status}");
        let events = self.releases.events()?;
        let rollbacks = events
            .iter()
            .filter(|event| event.machine == identity.id && event.words.contains("rolled back"))
            .count();
        ensure!(rollbacks == number + 1, "{rollbacks} reports: {events:?}");
        println!(
            "{trouble:?}: {boots} boots of {version}, then {FIRST}; reported once, not installed again"
        );
        Ok(())
    }

    /// Boots a machine whose partition tables are damaged, and checks that they are whole
    /// afterwards.
    ///
    /// # Errors
    ///
    /// Where it went wrong.
    pub fn damaged_tables(&self, chain: &Chain, damages: &[Damage]) -> Result<()> {
        let identity = Identity::new("tables");
        let mut machine = self.machine(&identity, chain)?;
        for damage in damages {
            damage.apply(&machine.disk)?;
            ensure!(
                machine.disk.verify_table().is_err(),
                "{damage:?} does no damage"
            );
            machine.start()?;
            let up = machine.up().with_context(|| format!("{damage:?}"))?;
            machine.power_off()?;
            machine
                .disk
                .verify_table()
                .with_context(|| format!("{damage:?} was not repaired"))?;
            println!(
                "{damage:?} destroyed: {} comes up, both copies are whole",
                up.version
            );
        }
        Ok(())
    }

    /// With both tables destroyed nothing boots: a message for a rescuer, and no storm of
    /// resets.
    ///
    /// # Errors
    ///
    /// Where it went wrong.
    pub fn no_tables(&self, chain: &Chain) -> Result<()> {
        let identity = Identity::new("no-tables");
        let mut machine = self.machine(&identity, chain)?;
        Damage::Primary.apply(&machine.disk)?;
        Damage::Backup.apply(&machine.disk)?;
        machine.start()?;
        machine.line_within("no valid partition table", BOOT_LIMIT)?;
        // A first program that ended would have been a panic and a reset after 2 s.
        std::thread::sleep(Duration::from_secs(20));
        let quiet = machine.is_on()? && machine.resets() == 0;
        ensure!(quiet, "a reset: {}", machine.last_words());
        println!("both tables destroyed: a message, no reset in 20 s");
        machine.cut()
    }

    /// Cuts the power of a machine at `count` moments of an update; then the old or the
    /// new version comes up. At many more moments the selected slot has all its files on
    /// the boot partition. The same without the sync between the copies of the partition
    /// table must fail.
    ///
    /// # Errors
    ///
    /// Where it went wrong.
    pub fn power_cuts(&self, count: usize, seed: u64) -> Result<()> {
        let identity = Identity::new("cuts");
        self.releases.publish(&identity.track, "2.0.0", None)?;
        let mut machine = self.machine(&identity, &Chain::Host)?;
        let folder = TempDir::new()?;
        let writes = Writes::of(&mut machine, folder.path(), |machine| {
            machine.up()?;
            machine.update()
        })?;
        println!("an update writes: {:?}", writes.log.totals());
        let rng = &mut Rng::with_seed(seed);
        for moment in writes.log.moments(READ_CUTS, rng) {
            let what = || format!("a cut after entry {moment}, seed {seed}");
            let cut = writes.cut(moment, rng)?;
            let slot = cut.next_boot().with_context(what)?;
            let files = |disk| boot_files(disk, slot, folder.path());
            ensure!(
                files(&cut).with_context(what)? == files(&machine.disk)?,
                "{}: {slot:?} is selected, and its files are not whole",
                what()
            );
        }
        println!("{READ_CUTS} cuts: the files of the selected slot are whole");
        let (old, new) = writes.boot(&writes.log.moments(count, rng), rng)?;
        println!("{count} cuts: the old version comes up {old} times, the new one {new} times");
        writes.can_be_lost(rng)
    }

    /// Cuts the power of a machine while its selector mends one copy of the partition
    /// table and spends the try of a new version: after `count` of these writes the old or
    /// the new version comes up, and after many more cuts something is selected. The same
    /// without the sync between the copies must fail.
    ///
    /// # Errors
    ///
    /// Where it went wrong.
    pub fn selector_cuts(&self, chain: &Chain, count: usize, seed: u64) -> Result<()> {
        let identity = Identity::new("selector-cuts");
        self.releases.publish(&identity.track, "2.0.0", None)?;
        let mut machine = self.machine(&identity, chain)?;
        machine.start()?;
        machine.up()?;
        machine.update()?;
        machine.power_off()?;
        Damage::PrimaryTable.apply(&machine.disk)?;
        let folder = TempDir::new()?;
        let writes = Writes::of(&mut machine, folder.path(), |machine| {
            let up = machine.up()?;
            ensure!(up.version == "2.0.0", "{up:?} {}", machine.last_words());
            Ok(())
        })?;
        println!("a boot writes: {:?}", writes.log.totals());
        let rng = &mut Rng::with_seed(seed);
        let mut moments = writes.log.table_moments();
        let mut chosen = [0; 2];
        for moment in &moments {
            for _ in 0..TABLE_CUTS {
                let slot = writes.cut(*moment, rng)?.next_boot();
                let slot =
                    slot.with_context(|| format!("a cut after entry {moment}, seed {seed}"))?;
                chosen[usize::from(slot == Slot::B)] += 1;
            }
        }
        let [old, new] = chosen;
        println!(
            "{} cuts select the old version {old} times, the new one {new} times",
            old + new
        );
        ensure!(old > 0 && new > 0, "the try was not spent in between");
        rng.shuffle(&mut moments);
        let moments: Vec<_> = moments.into_iter().cycle().take(count).collect();
        let (old, new) = writes.boot(&moments, rng)?;
        println!("{count} cuts: the old version comes up {old} times, the new one {new} times");
        writes.can_be_lost(rng)
    }

    /// locksmithd takes a place in etcd's semaphore and jumps into the new version; the
    /// place is given back when that is well. A kernel that refuses to jump costs a reset
    /// and nothing else.
    ///
    /// # Errors
    ///
    /// Where it went wrong.
    pub fn kexec(&self, refused: bool) -> Result<()> {
        let identity = Identity::new("kexec");
        self.releases.publish(&identity.track, "2.0.0", None)?;
        let etcd = Cluster::start()?;
        let endpoint = etcd.endpoint(0).replace("127.0.0.1", HOST);
        let settings = format!(
            "strategy = \"etcd-lock\"\nreboot_method = \"kexec\"\nwarn_users = \"0s\"\n\
             [etcd]\nendpoints = [\"{endpoint}\"]\n[health]\nsoak = \"1s\"\n"
        );
        let files = [("etc/locksmith/locksmith.toml", settings.as_str())];
        let content = Content {
            files: &files,
            ..self.releases.first(&identity)
        };
        let mut machine = Machine::new(&identity.track, Chain::Host, content)?;
        machine.start()?;
        machine.up()?;
        if refused {
            machine.shell("echo 1 >/proc/sys/kernel/kexec_load_disabled")?;
        }
        // It reboots by itself as soon as the update is applied.
        machine.shell("update_engine_client -check_for_update")?;
        let up = machine.up_within(2 * BOOT_LIMIT)?;
        ensure!(up.version == "2.0.0", "{up:?} {}", machine.last_words());
        let resets = machine.resets();
        ensure!(resets == usize::from(refused), "{}", machine.last_words());
        // The place is kept until the new version has proven itself.
        let status = semaphore(&etcd)?;
        ensure!(status.starts_with("Available: 0\n"), "{status}");
        machine.marked(Slot::B)?;
        poll_every(LOOK, "the place given back", RELEASE_LIMIT, || {
            Ok(semaphore(&etcd)?
                .starts_with("Available: 1\n")
                .then_some(()))
        })
        .with_context(|| machine.last_words())?;
        let way = if refused { "refused" } else { "done" };
        println!(
            "kexec {way}: {} runs after {resets} resets, its place is free",
            up.version
        );
        machine.cut()
    }
}

/// What a machine wrote to its disk while it was switched on once.
struct Writes {
    /// The disk as it was before.
    base: PathBuf,
    log: WriteLog,
    /// Place for one disk.
    cut: PathBuf,
}

impl Writes {
    /// Switches `machine` on, lets `drive` do something with it, and switches it off.
    fn of(
        machine: &mut Machine,
        folder: &Path,
        drive: impl FnOnce(&mut Machine) -> Result<()>,
    ) -> Result<Self> {
        let [base, log, cut] = ["base", "log", "cut"].map(|name| folder.join(name));
        fs::copy(machine.disk.path(), &base)?;
        File::create(&log)?;
        machine.log_writes(&log);
        machine.start()?;
        let resets = machine.resets();
        drive(machine)?;
        machine.power_off()?;
        ensure!(machine.resets() == resets, "{}", machine.last_words());
        let length = fs::metadata(&base)?.len();
        Ok(Self {
            log: WriteLog::read(&log, length)?,
            base,
            cut,
        })
    }

    /// The disk after a power cut; the next call makes it anew.
    fn cut(&self, moment: usize, rng: &mut Rng) -> Result<Disk> {
        self.log.cut(&self.base, moment, &self.cut, rng)?;
        Ok(Disk::at(&self.cut, SIZES))
    }

    /// Boots the disk after a cut at each of these moments; how often the first and the
    /// second version come up.
    fn boot(&self, moments: &[usize], rng: &mut Rng) -> Result<(usize, usize)> {
        let (mut old, mut new) = (0, 0);
        for moment in moments {
            let disk = self.cut(*moment, rng)?;
            let version = boot_selected(disk.path(), &format!("cut-{moment}"))
                .with_context(|| format!("a cut after entry {moment}"))?;
            match &*version {
                FIRST => old += 1,
                "2.0.0" => new += 1,
                other => bail!("a cut after entry {moment}: {other} comes up"),
            }
        }
        Ok((old, new))
    }

    /// Checks that cuts are lost when nothing is synced between the copies of the
    /// partition table.
    fn can_be_lost(self, rng: &mut Rng) -> Result<()> {
        let careless = Self {
            log: self.log.without_flushes_between_tables(),
            ..self
        };
        let moments = careless.log.table_moments();
        let (mut cuts, mut lost) = (0, 0);
        while lost == 0 && cuts < MOST_LOST_CUTS {
            for moment in &moments {
                cuts += 1;
                lost += usize::from(careless.cut(*moment, rng)?.next_boot().is_err());
            }
        }
        println!(
            "without the sync between the tables {lost} of {cuts} cuts would leave nothing that boots"
        );
        ensure!(lost > 0, "the check cannot fail");
        Ok(())
    }
}

/// The version that the slot selected on the disk in the file `image` boots into, by itself:
/// a way back that hides a half-written slot is no answer.
///
/// An idle emulated machine stands still now and then while the kernel replays the journal
/// of ROOT, before it looks at the slot, until its watchdog resets it. A slot that is not
/// whole fails each time.
fn boot_selected(image: &Path, name: &str) -> Result<String> {
    const ATTEMPTS: usize = 3;
    let mut said = String::new();
    for _ in 0..ATTEMPTS {
        let mut machine = Machine::of_disk(name, Chain::Host, |disk| {
            fs::copy(image, disk)?;
            Ok(())
        })?;
        machine.start()?;
        let up = machine.up()?;
        if machine.resets() == 0 {
            return Ok(up.version);
        }
        said = machine.last_words();
    }
    bail!("the selected slot did not boot in {ATTEMPTS} attempts: {said}")
}

/// What `locksmithctl status` says of the semaphore.
fn semaphore(etcd: &Cluster) -> Result<String> {
    let mut status = program("locksmithctl")?;
    status.args(["-endpoint", &etcd.endpoint(0), "status"]);
    run(&mut status, SHELL_LIMIT)?.success()
}
