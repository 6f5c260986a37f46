#!/usr/bin/env bash
# Builds images of three releases of a small system out of Debian packages, to
# measure updates on: the newest packages (new), the same with another kernel and
# OpenSSL (hot, as before a patch release), and older ones wherever the archive
# still has them (prev, as before a feature release).
#
#   make-corpus.sh [KIND...]    ext4 sq-zstd sq-gzip sq-none erofs-none erofs-lz4 btrfs
#
# Images are CORPUS/RELEASE.KIND; those that are there already are left alone, so
# a second run does nothing. Takes 6 GB and some ten minutes. Which versions there
# are depends on the day: compare figures of one corpus only.
set -euo pipefail

PATH=$PATH:/usr/sbin:/sbin
corpus=${CORPUS:-${XDG_CACHE_HOME:-$HOME/.cache}/update-corpus}
read -ra kinds <<<"${*:-${IMAGES:-ext4 sq-zstd sq-gzip erofs-lz4 btrfs}}"
releases='prev hot new'
# One moment for all files and filesystems, so that only contents differ.
moment=${SOURCE_DATE_EPOCH:-1767225600}
uuid=6f0c1b9e-35a4-4c0e-9d0b-b1a3a5f0c0de

# What a host of containers carries.
seeds='base-files bash coreutils util-linux mount systemd udev systemd-timesyncd
systemd-resolved dbus libc6 libc-bin openssl ca-certificates curl wget
openssh-server openssh-client sudo login passwd python3-minimal python3.11 perl-base
iproute2 iptables nftables kmod e2fsprogs btrfs-progs xfsprogs lvm2 cryptsetup-bin
mdadm nfs-common containerd runc git vim-tiny jq less nano rsync tar gzip xz-utils
zstd tcpdump strace gnupg bind9-dnsutils libxml2 libglib2.0-0 polkitd tzdata
grub-efi-amd64-bin gawk sed grep findutils procps psmisc ethtool socat conntrack'
# What a patch release changes, beside the kernel.
patched=' openssl libssl3 ca-certificates '

die() { echo "make-corpus.sh: $*" >&2; exit 1; }
say() { echo "make-corpus.sh: $*" >&2; }

missing() {
    local kind release
    for kind in "${kinds[@]}"; do
        for release in $releases; do
            [ -s "$corpus/$release.$kind" ] || return 0
        done
    done
    return 1
}

# "package newest next" for each of the packages; next is newest where the archive
# has one version only. apt tells versions in their order, the newest first.
versions() {
    apt-cache madison "$@" | awk -F '[ |]+' '
        { sub(/^ +/, "") }
        /Sources$/ || seen[$1, $2]++ { next }
        !($1 in newest) { newest[$1] = $2; order[++count] = $1; next }
        !($1 in before) { before[$1] = $2 }
        END {
            for (i = 1; i <= count; i++) {
                p = order[i]
                print p, newest[p], (p in before) ? before[p] : newest[p]
            }
        }'
}

# "package version" lines for each release, in the files packages-RELEASE.
choose() {
    local closure package newest before kernels
    # Dependencies as a machine sees them that has nothing installed.
    closure=$(apt-get -qq -o Dir::State::status=/dev/null -o APT::Install-Recommends=0 \
        --print-uris install $seeds | awk '{ print $2 }' | cut -d_ -f1 |
        grep -Ev '^linux-(image|headers)' | sort -u)
    [ -n "$closure" ] || die "apt knows no packages; run apt-get update"
    mapfile -t kernels < <(apt-cache --names-only search '^linux-image-[0-9.]+-[0-9]+-cloud-amd64$' |
        cut -d' ' -f1 | sort -V)
    [ "${#kernels[@]}" -ge 3 ] || die "the archive has fewer than three kernels"
    echo "${kernels[0]} -" >packages-prev
    echo "${kernels[-2]} -" >packages-hot
    echo "${kernels[-1]} -" >packages-new
    while read -r package newest before; do
        echo "$package $newest" >>packages-new
        echo "$package $before" >>packages-prev
        case $patched in
        *" $package "*) echo "$package $before" >>packages-hot ;;
        *) echo "$package $newest" >>packages-hot ;;
        esac
    done < <(versions $closure)
}

# The file of a package, fetched if need be. "-" is whatever version there is.
deb() {
    local version=${2//:/%3a} file
    [ "$2" != - ] || version='*'
    file=$(compgen -G "packages/${1}_${version}_*.deb" | head -n 1 || true)
    if [ -z "$file" ]; then
        (cd packages && apt-get -qq -o APT::Sandbox::User=root download "$1$([ "$2" = - ] || echo "=$2")")
        file=$(compgen -G "packages/${1}_${version}_*.deb" | head -n 1)
    fi
    echo "$file"
}

# Unpacks a release and makes of it what a /usr partition holds.
plant() {
    local release=$1 stage=stage-$1 usr=stage-$1/usr package version file folder kernel
    rm -rf "$stage"
    mkdir "$stage"
    while read -r package version; do
        file=$(deb "$package" "$version")
        dpkg-deb --fsys-tarfile "$file" | tar -C "$stage" --keep-directory-symlink -xf -
    done <"packages-$release"
    # Everything moves below /usr; /etc becomes what new machines start with.
    for folder in bin sbin lib lib64; do
        [ -d "$stage/$folder" ] || continue
        mkdir -p "$usr/$folder"
        cp -al "$stage/$folder/." "$usr/$folder/"
    done
    mkdir -p "$usr/share/factory/etc" "$usr/boot"
    cp -a "$stage/etc/." "$usr/share/factory/etc/"
    kernel=$(cd "$usr/lib/modules" && echo *)
    cp "$stage/boot/vmlinuz-$kernel" "$usr/boot/vmlinuz"
    depmod -b "$stage/usr/.." "$kernel" 2>/dev/null || true
    # What such a system would not ship.
    rm -rf "$usr"/share/{doc,man,info,locale,lintian,bug,help,perl} \
        "$usr"/lib/*/perl/*/CORE "$usr"/lib/{debug,grub} \
        "$usr"/bin/{ctr,containerd-shim,containerd-shim-runc-v1} \
        "$usr"/lib/x86_64-linux-gnu/{libicu*,libperl*,perl}
    find "$usr" \( -name '*.pyc' -o -name '*.a' \) -delete
    printf 'ID=corpus\nVERSION_ID=%s\n' "$release" >"$usr/lib/os-release"
    find "$usr" -exec touch --no-dereference --date="@$moment" {} +
    mv "$usr" "tree-$release"
    rm -rf "$stage"
}

# Makes OUT, an image of KIND, of TREE.
build() {
    local tree=$1 kind=$2 out=$3 megabytes
    local squashfs=(mksquashfs "$tree" "$out" -noappend -b 128K -all-root -mkfs-time "$moment" -quiet -no-progress)
    local erofs=(mkfs.erofs --quiet "-T$moment" "-U$uuid" --all-root)
    megabytes=$(du -sm "$tree" | cut -f1)
    case $kind in
    sq-zstd) "${squashfs[@]}" -comp zstd -Xcompression-level 19 ;;
    sq-gzip) "${squashfs[@]}" -comp gzip ;;
    sq-none) "${squashfs[@]}" -noI -noD -noF -noX ;;
    erofs-none) "${erofs[@]}" "$out" "$tree" ;;
    erofs-lz4) "${erofs[@]}" -zlz4hc,12 -C65536 "$out" "$tree" ;;
    ext4)
        E2FSPROGS_FAKE_TIME=$moment mkfs.ext4 -q -b 4096 -m 0 -U "$uuid" \
            -O ^has_journal,^metadata_csum,^resize_inode \
            -E "hash_seed=$uuid,lazy_itable_init=0,root_owner=0:0" \
            -d "$tree" "$out" "$((megabytes * 112 / 100 + 16))M"
        ;;
    btrfs)
        # Only the kernel compresses; as Flatcar builds it.
        truncate -s "$((megabytes * 6 / 10 + 64))M" "$out"
        mkfs.btrfs -q -f --mixed -m single -d single -U "$uuid" "$out"
        mkdir -p mount
        mount -o loop,compress-force=zstd:15 "$out" mount
        cp -a "$tree/." mount/ || { umount mount; return 1; }
        umount mount
        ;;
    *) die "no kind of image is called $kind" ;;
    esac
}

missing || exit 0
mkdir -p "$corpus/packages"
cd "$corpus"
[ -e chosen ] || { choose; touch chosen; }
for release in $releases; do
    [ -d "tree-$release" ] || { say "tree of $release"; plant "$release"; }
    for kind in "${kinds[@]}"; do
        [ ! -s "$release.$kind" ] || continue
        say "$release.$kind"
        # An interrupted image must not pass for a whole one.
        rm -f "part.$kind"
        if build "tree-$release" "$kind" "part.$kind"; then
            mv "part.$kind" "$release.$kind"
        elif [ "$kind" = btrfs ]; then
            say "no btrfs here: it takes root and a kernel that knows it"
            rm -f "part.$kind"
        else
            die "$release.$kind failed"
        fi
    done
done
