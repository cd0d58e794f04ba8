#!/bin/sh
# Turns a freshly installed Debian root into what the lab boots.
#
# Runs as mmdebstrap's customize hook (as root of its namespace), so that file
# owners are right whether or not the caller is root.
#
#   build.sh ROOT OUT PARTS
#     ROOT   the installed root file system
#     OUT    where to leave: xen, vmlinuz, initrd.img, linux.img, root.ext4
#     PARTS  directory with: boot, initrd-init, linux-init, inittab, sshd_config,
#            id.pub, ssh_host_ed25519_key, packages.download, modules.keep,
#            modules.initrd, modules.linux, programs.linux, image.mib
set -eu

root=$1
out=$2
parts=$3

# The hypervisor and the kernel are unpacked, not installed: their maintainer
# scripts would build boot menus and an initrd that nobody here uses.
downloads=$root/var/tmp/segue-downloads
mkdir -p "$downloads"
kernel=$(APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-cache depends linux-image-amd64 |
    sed -n 's/^ *Depends: \(linux-image-[0-9].*\)$/\1/p' | head -n 1)
[ -n "$kernel" ] || { echo "linux-image-amd64 depends on no kernel" >&2; exit 1; }
echo "segue-lab: kernel package $kernel" >&2
(
    cd "$downloads"
    # shellcheck disable=SC2046 # a list of package names, split on purpose
    APT_CONFIG=$MMDEBSTRAP_APT_CONFIG apt-get -q -o APT::Sandbox::User=root \
        download "$kernel" $(cat "$parts/packages.download")
)
for deb in "$downloads"/*.deb; do
    case ${deb##*/} in
        linux-image-*)
            # Only the modules a dom0 of the lab can need: the whole set is 400 MB.
            dpkg-deb --fsys-tarfile "$deb" |
                tar -x -C "$downloads" --wildcards --no-wildcards-match-slash \
                    './boot/*' './lib/modules/*/modules.*'
            dpkg-deb --fsys-tarfile "$deb" >"$downloads/kernel.tar"
            version=$(ls "$downloads/lib/modules")
            while read -r module; do
                printf './lib/modules/%s/kernel/%s\n' "$version" "$module"
            done <"$parts/modules.keep" >"$downloads/keep"
            tar -x -C "$downloads" -f "$downloads/kernel.tar" --wildcards \
                -T "$downloads/keep"
            ;;
        *)
            dpkg-deb -x "$deb" "$downloads"
            ;;
    esac
done
gunzip -c "$downloads"/boot/xen-4.17-amd64.gz >"$out/xen"
cp "$downloads/boot/vmlinuz-$version" "$out/vmlinuz"
mkdir -p "$root/lib/modules"
mv "$downloads/lib/modules/$version" "$root/lib/modules/$version"
rm -rf "$downloads"
chroot "$root" depmod "$version"

# An initrd: busybox, modules in the order to load them in, programs with their
# libraries, one script.
#   make_initrd MODULES INIT RESULT [PROGRAMS]
make_initrd() {
    initrd=$root/var/tmp/segue-initrd
    mkdir -p "$initrd/bin" "$initrd/modules" "$initrd/dev" "$initrd/proc" "$initrd/sys" "$initrd/root"
    cp "$root/bin/busybox" "$initrd/bin/busybox"
    while read -r module; do
        chroot "$root" modprobe -S "$version" --show-depends "$module"
    done <"$1" | awk '$1 == "insmod" && !seen[$2]++ { print $2 }' >"$initrd/list"
    while read -r path; do
        cp "$root$path" "$initrd/modules/"
        echo "${path##*/}"
    done <"$initrd/list" >"$initrd/modules/order"
    rm "$initrd/list"
    if [ -n "${4:-}" ]; then
        while read -r program; do
            echo "$program"
            chroot "$root" ldd "$program" | grep -o '/[^ ]*'
        done <"$4" | sort -u | while read -r file; do
            mkdir -p "$initrd${file%/*}"
            cp -L "$root$file" "$initrd$file"
        done
    fi
    install -m 755 "$2" "$initrd/init"
    chroot "$root" sh -c 'cd /var/tmp/segue-initrd && busybox find . | busybox cpio -o -H newc 2>/dev/null' >"$3"
    rm -rf "$initrd"
}
make_initrd "$parts/modules.initrd" "$parts/initrd-init" "$out/initrd.img"
make_initrd "$parts/modules.linux" "$parts/linux-init" "$out/linux.img" "$parts/programs.linux"

# What is the lab's own in the root file system.
install -D -m 755 "$parts/boot" "$root/segue/boot"
install -m 644 "$parts/inittab" "$root/etc/inittab"
install -D -m 644 "$parts/sshd_config" "$root/segue/sshd_config"
rm -f "$root"/etc/ssh/ssh_host_*
install -D -m 600 "$parts/ssh_host_ed25519_key" "$root/etc/ssh/ssh_host_ed25519_key"
install -d -m 700 "$root/root/.ssh"
install -m 600 "$parts/id.pub" "$root/root/.ssh/authorized_keys"
# Debian locks root's password, and sshd refuses a locked account even by key.
sed -i 's/^root:[^:]*:/root:*:/' "$root/etc/shadow"
echo dom0 >"$root/etc/hostname"
printf '127.0.0.1 localhost dom0\n10.0.0.1 dom0.lab\n' >"$root/etc/hosts"
mkdir -p "$root/var/log/xen/console"

rm -rf "$root"/var/lib/apt/lists/* "$root"/var/cache/apt/* "$root"/usr/share/doc/* \
    "$root"/usr/share/man/* "$root"/usr/share/locale/*

# mmdebstrap has /proc, /sys and /dev mounted in the root: copy what is beneath.
stage=$out/stage
mkdir -p "$stage"
cp -ax "$root/." "$stage"
rm -rf "$stage/dev"
mkdir -p "$stage/dev" "$stage/proc" "$stage/sys" "$stage/run"
truncate -s "$(cat "$parts/image.mib")M" "$out/root.ext4"
mkfs.ext4 -q -F -L segue-dom0 -O ^has_journal -E lazy_itable_init=1 \
    -d "$stage" "$out/root.ext4"
rm -rf "$stage"
chmod -R a+rw "$out"
