#!/usr/bin/env bash
# The main job, played on real input and without root: a disk image with two USR
# slots is updated by the real daemon, over a real D-Bus, from a real Omaha
# server, by a signed payload; then the new version fails to boot and the old one
# comes back.
#
#   tests/demo/demo.sh [FOLDER WITH THE PROGRAMS]      (normally through `make demo`)
#
# Everything happens in a temporary folder (2 GB under TMPDIR), which is removed in
# the end. Exit status 0 means that every step was as expected.
set -Eeuo pipefail

programs=$(realpath "${1:-target/release}")
# The admin tools live in sbin, which ordinary users do not have in PATH.
export PATH="$programs:$PATH:/usr/sbin:/sbin"
export LC_ALL=C

# The classic disk layout of Flatcar and CoreOS (sectors of 512 bytes) with its
# well-known GUIDs.
readonly usr_type=5dfbf5f4-2848-4bac-aa5e-0d9a20b745a6
readonly usr_a=7130c94a-213a-4e5a-8e26-6cce9662f132
readonly usr_b=e03dd35c-7c2d-4a47-b3fe-27f15780a57c
readonly slot_sectors=2097152 # 1 GiB
readonly usr_a_start=270336
readonly usr_b_start=$((usr_a_start + slot_sectors))

readonly image_bytes=300000000 # the new image is at least this large
readonly memory_limit=$((64 * 1024 * 1024))
readonly old_version=1.0.0 new_version=2.0.0

started=() # ids of the programs in the background

main() {
    trap clean_up EXIT
    trap 'fail "line $LINENO: $BASH_COMMAND"' ERR
    trap 'exit 130' INT TERM
    check_tools
    work=$(mktemp -d "${TMPDIR:-/tmp}/update-demo.XXXXXX")
    cd "$work"

    build_images
    make_disk
    make_payload
    start_server
    start_daemon
    update
    check_result
    fail_to_boot
    summarize
}

build_images() {
    step "Build two USR images out of files of this system"
    mkdir -p "usr-$old_version/lib" "usr-$new_version/lib"
    echo "VERSION=$old_version" >"usr-$old_version/lib/os-release"
    echo "VERSION=$new_version" >"usr-$new_version/lib/os-release"

    image "$old_version" 150000000
    # How well the files of this system compress is not known beforehand.
    local content=$((image_bytes * 5 / 2)) before=-1
    while image "$new_version" "$content"; [ "$(size_of "usr-$new_version.img")" -lt "$image_bytes" ]; do
        [ "$(size_of "usr-$new_version.img")" != "$before" ] || break # no more files
        before=$(size_of "usr-$new_version.img")
        content=$((content * 3 / 2))
    done
    [ "$(size_of "usr-$new_version.img")" -ge "$image_bytes" ] ||
        note "This system has files for a smaller image only."

    head -c 12000000 /dev/urandom >vmlinuz-$new_version # any file will do as a kernel
    result "$(ls -s --block-size=MB usr-$old_version.img usr-$new_version.img vmlinuz-$new_version)"
}

# image VERSION BYTES: a squashfs of usr-VERSION/ and about BYTES of system files.
image() {
    # find ends with status 1 when it may not look into a folder, which is fine.
    { find /usr/bin /usr/sbin /usr/lib /usr/share "$(rustc --print sysroot)" "$programs" \
        -xdev -type f -readable -printf '%s %p\0' 2>/dev/null || true; } |
        awk -v RS='\0' -v ORS='\0' -v left="$2" '
            left > 0 { left -= $1; sub(/^[0-9]+ /, ""); print }' >"$1.files"
    # tar ends with status 1 when a file changes while it is read, which is fine.
    { tar --create --absolute-names --null "usr-$1" --files-from "$1.files" 2>/dev/null || [ $? = 1 ]; } |
        mksquashfs - "usr-$1.img" -tar -comp zstd -Xcompression-level 1 \
            -noappend -quiet -no-progress
}

make_disk() {
    step "Make a disk with two slots; version $old_version is in USR-A and runs"
    truncate --size=2300M disk.img
    run_quietly sgdisk \
        --new=1:4096:+128M --typecode=1:ef00 --change-name=1:EFI-SYSTEM \
        --new=3:$usr_a_start:+1G --typecode=3:$usr_type --partition-guid=3:$usr_a --change-name=3:USR-A \
        --new=4:$usr_b_start:+1G --typecode=4:$usr_type --partition-guid=4:$usr_b --change-name=4:USR-B \
        disk.img
    run dd if=usr-$old_version.img of=disk.img bs=512 seek=$usr_a_start conv=notrunc,sparse status=none
    run gptprio set disk.img USR-A --priority 1 --tries 0 --successful 1
    run gptprio show disk.img
    expect_next USR-A $usr_a
}

make_payload() {
    step "Make a key, and a signed payload of the new version"
    folder=releases/stable/amd64-usr/$new_version
    mkdir -p "$folder"
    run payload keygen --out release.pem
    run payload generate --new usr-$new_version.img --kernel vmlinuz-$new_version \
        --private-key release.pem --out "$folder/update.payload"
    run payload verify --public-key release.pub.pem "$folder/update.payload"
}

start_server() {
    step "Serve the folder to machines"
    start omaha-server serve releases --listen 127.0.0.1:0
    wait_for "the server" grep -q '^listening on ' omaha-server.out
    server=$(sed -n 's/^listening on //p' omaha-server.out)
    result "$(cat omaha-server.out)"
}

start_daemon() {
    step "Start a message bus and the update daemon of a machine that runs version $old_version"
    mkdir -p machine/{etc/flatcar,boot/flatcar,usr/share/flatcar,usr/share/update_engine}
    mkdir -p machine/proc/sys/kernel/random
    echo 0123456789abcdef0123456789abcdef >machine/etc/machine-id
    echo 11111111-2222-4333-8444-555555555555 >machine/proc/sys/kernel/random/boot_id
    printf 'GROUP=stable\nSERVER=%s/v1/update/\n' "$server" >machine/etc/flatcar/update.conf
    printf 'FLATCAR_RELEASE_VERSION=%s\nFLATCAR_RELEASE_BOARD=amd64-usr\n' "$old_version" \
        >machine/usr/share/flatcar/release
    cp release.pub.pem machine/usr/share/update_engine/update-payload-key.pub.pem
    echo "the running kernel" >machine/boot/flatcar/vmlinuz-a
    result "machine/etc/flatcar/update.conf:" "$(cat machine/etc/flatcar/update.conf)"

    cat >bus.conf <<END
<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN"
  "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig>
  <listen>unix:path=$work/bus</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_destination="*"/>
    <allow receive_sender="*"/>
  </policy>
</busconfig>
END
    start dbus-daemon --config-file=bus.conf --nofork --nopidfile
    wait_for "the message bus" test -S bus
    export DBUS_SYSTEM_BUS_ADDRESS=unix:path=$work/bus # for the client

    boot_daemon_in A
    run update_engine_client -status
}

# boot_daemon_in SLOT: starts the daemon as the system in SLOT would.
boot_daemon_in() {
    start update_engine -foreground --root machine --bus "$DBUS_SYSTEM_BUS_ADDRESS" \
        --disk disk.img --booted-slot "$1"
    daemon=$!
    wait_for "the update daemon" update_engine_client -status --retry-seconds 1
}

update() {
    step "Update"
    local begin=$SECONDS
    run update_engine_client -update
    grep -qx 'CURRENT_OP=UPDATE_STATUS_UPDATED_NEED_REBOOT' last.out ||
        fail "the daemon did not end in UPDATED_NEED_REBOOT"
    took=$((SECONDS - begin))
    peak=$(awk '/^VmHWM:/ { print $2 * 1024 }' "/proc/$daemon/status")
    result "Took at most $took s. Peak memory of update_engine: $(mebibytes "$peak") MiB" \
        "(limit 64 MiB) for an image of $(mebibytes "$(size_of usr-$new_version.img)") MiB."
    [ "$peak" -lt "$memory_limit" ] || fail "update_engine needed more than 64 MiB"
    note "What the server heard of it:"
    result "$(events)"
}

check_result() {
    step "Compare: the new slot boots next and holds the new image, byte for byte"
    run gptprio show disk.img
    expect_attributes USR-A 1/0/1
    expect_attributes USR-B 2/1/0
    expect_next USR-B $usr_b
    run cmp --ignore-initial=$((usr_b_start * 512)):0 \
        --bytes="$(size_of usr-$new_version.img)" disk.img usr-$new_version.img
    run cmp --ignore-initial=$((usr_a_start * 512)):0 \
        --bytes="$(size_of usr-$old_version.img)" disk.img usr-$old_version.img
    run cmp machine/boot/flatcar/vmlinuz-b vmlinuz-$new_version
    run sgdisk --verify disk.img
}

fail_to_boot() {
    step "Reboot into the new version, which hangs: its only try is spent"
    run gptprio next disk.img
    expect_guid "$(cat last.out)" $usr_b
    expect_attributes USR-B 2/0/0
    note "Nothing marks the new slot successful, and somebody presses the reset button:"
    run gptprio next disk.img
    expect_guid "$(cat last.out)" $usr_a
    run gptprio show disk.img
    note "The machine is back on version $old_version in USR-A."

    step "Back on the old version: the server is told, the bad version is not tried again"
    stop "$daemon"
    # What a reboot changes: memory is empty, the boot has another id.
    rm -rf machine/run machine/var/run
    echo 22222222-2222-4333-8444-555555555555 >machine/proc/sys/kernel/random/boot_id
    boot_daemon_in A
    run update_engine_client -update
    grep -q "rolled back" last.err || fail "the bad version is not refused"
    result "$(events | tail -n 2)"
    expect_next USR-A $usr_a
}

summarize() {
    step "Shown"
    cat <<END
  - an image of $(mebibytes "$(size_of usr-$new_version.img)") MiB was installed from a signed payload in at most $took s
  - update_engine needed at most $(mebibytes "$peak") MiB of memory
  - the target slot and the kernel equal the new release byte for byte
  - the running slot was not touched, the partition table is sound
  - a boot that fails leads back to the old version by itself, which reports it and stays
  Whole demo: $SECONDS s.
END
}

# --- talking -------------------------------------------------------------------

if [ -n "${CLICOLOR_FORCE:-}" ] || { [ -t 1 ] && [ -z "${NO_COLOR:-}" ]; }; then
    export CLICOLOR_FORCE=1 # the programs write into files here
    bold=$'\e[1m' blue=$'\e[1;34m' green=$'\e[32m' red=$'\e[1;31m' dim=$'\e[2m' plain=$'\e[0m'
else
    bold='' blue='' green='' red='' dim='' plain=''
fi
steps=0

step() {
    steps=$((steps + 1))
    printf '\n%s%d. %s%s\n' "$blue" "$steps" "$1" "$plain"
}

result() { printf '%s\n' "$@" | sed 's/^/  /'; }
note() { printf '  %s%s%s\n' "$dim" "$1" "$plain"; }

fail() {
    printf '\n%sFailed: %s%s\n' "$red" "$1" "$plain" >&2
    exit 1
}

# --- running -------------------------------------------------------------------

# run COMMAND…: shows the command as one would type it and what it prints; its
# stdout stays in last.out.
run() {
    run_quietly "$@"
    sed 's/^/  /' last.out last.err
}

# run_quietly COMMAND…: the same without what it prints, unless it fails.
run_quietly() {
    show_command "$@"
    local status=0
    "$@" >last.out 2>last.err || status=$?
    [ "$status" = 0 ] && return
    sed 's/^/  /' last.out last.err
    fail "$1 ended with exit status $status"
}

# start COMMAND…: the same in the background; $! is its id, NAME.out and NAME.err
# hold what it prints.
start() {
    show_command "$@" "&"
    "$@" >"$1.out" 2>"$1.err" &
    started+=("$!")
}

# stop ID: ends a program that start began.
stop() {
    kill "$1" 2>/dev/null || true
    wait "$1" 2>/dev/null || true
}

show_command() {
    # shellcheck disable=SC2001
    printf '%s$ %s%s\n' "$bold" "$(sed "s|$work/||g; s|$work|.|g" <<<"$*")" "$plain"
}

# wait_for WHAT CONDITION…: at most ten seconds.
wait_for() {
    local what=$1
    shift
    for _ in {1..100}; do
        "$@" >/dev/null 2>&1 && return
        sleep 0.1
    done
    fail "$what did not start"
}

# --- expecting -----------------------------------------------------------------

# What machines have reported to the server so far.
events() { sed -n 's/^[^ ]* *INFO //; s/ machine=.*//; /^event:/p' omaha-server.err; }

size_of() { stat --format=%s "$1"; }
mebibytes() { awk -v bytes="$1" 'BEGIN { printf "%.1f", bytes / 1048576 }'; }

expect_guid() {
    [ "$1" = "$2" ] || fail "expected partition $2, got $1"
}

# expect_next NAME GUID: this slot would boot.
expect_next() {
    run gptprio next --dry-run disk.img
    expect_guid "$(cat last.out)" "$2"
    printf '  %s%s would boot.%s\n' "$green" "$1" "$plain"
}

# expect_attributes NAME PRIORITY/TRIES/SUCCESSFUL, asked from cgpt so that our
# own code is not its own witness.
expect_attributes() {
    local number=3
    [ "$1" = USR-A ] || number=4
    local got
    got=$(cgpt show -i $number -P disk.img)/$(cgpt show -i $number -T disk.img)/$(cgpt show -i $number -S disk.img)
    [ "$got" = "$2" ] || fail "cgpt says that $1 has priority/tries/successful $got, not $2"
    printf '  %scgpt agrees: %s has priority/tries/successful %s.%s\n' "$green" "$1" "$got" "$plain"
}

# --- begin and end -------------------------------------------------------------

check_tools() {
    local tool
    for tool in payload gptprio omaha-server update_engine update_engine_client; do
        [ -x "$programs/$tool" ] || fail "$programs has no program $tool; \`make demo\` builds it"
    done
    for tool in sgdisk cgpt mksquashfs dbus-daemon tar cmp rustc; do
        command -v "$tool" >/dev/null || fail "$tool is missing; \`make setup\` installs it"
    done
    local free
    free=$(df --output=avail --block-size=1M "${TMPDIR:-/tmp}" | tail -n 1)
    [ "$free" -ge 2000 ] || fail "${TMPDIR:-/tmp} has less than 2 GB free; set TMPDIR to another folder"
}

clean_up() {
    local status=$? id
    [ "$status" = 0 ] || show_logs
    for id in "${started[@]}"; do
        stop "$id"
    done
    cd / && rm -rf "${work:-}"
    exit "$status"
}

show_logs() {
    local log
    for log in "${work:-.}"/{omaha-server,update_engine}.err; do
        [ -s "$log" ] || continue
        printf '\n--- %s, last lines\n' "$(basename "$log" .err)"
        tail -n 20 "$log"
    done >&2
}

main
