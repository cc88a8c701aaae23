#!/bin/sh
# Completes the root file system of the image in the folder given, for the architecture given: system libraries that
# the binary and ONNX Runtime name, CA roots, the user, and a folder that this user may write. The libraries are read,
# not run, so that they may be those of another architecture.
set -eu
root=$1
case "$2" in
    amd64) machine=x86_64 ;;
    arm64) machine=aarch64 ;;
    *) echo "no image is made for '$2'" >&2; exit 1 ;;
esac
folder=/lib/$machine-linux-gnu

copy() {
    mkdir -p "$root$(dirname "$1")"
    cp -L "$1" "$root$1"
    # The license of the package it came from.
    package=$(dpkg -S "*/$(basename "$1")" | head -n 1 | cut -d: -f1)
    mkdir -p "$root/usr/share/doc/$package"
    cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/"
}

# Copies what a file names, and what that names; a name that is not found stops the build.
copy_needed() {
    readelf -d "$1" | sed -n 's/.*(NEEDED).*\[\(.*\)\]/\1/p' | while read -r name; do
        if [ -e "$root$folder/$name" ]; then continue; fi
        copy "$folder/$name"
        copy_needed "$folder/$name"
    done
}

copy_needed "$root/opt/rerankd/rerankd"
copy_needed "$root/opt/rerankd/libonnxruntime.so"
# The loader, by the name that the kernel starts it with.
copy "$(readelf -l "$root/opt/rerankd/rerankd" | sed -n 's/.*interpreter: \(.*\)\]/\1/p')"

mkdir -p "$root/etc/ssl/certs" "$root/usr/share/doc/ca-certificates"
cp /etc/ssl/certs/ca-certificates.crt "$root/etc/ssl/certs/"
cp /usr/share/doc/ca-certificates/copyright "$root/usr/share/doc/ca-certificates/"

echo 'rerankd:x:10001:10001:rerankd:/data:/nonexistent' > "$root/etc/passwd"
echo 'rerankd:x:10001:' > "$root/etc/group"
# Names are looked up as elsewhere: the hosts file first.
echo 'hosts: files dns' > "$root/etc/nsswitch.conf"
mkdir "$root/data"
chown 10001:10001 "$root/data"
chmod -R go-w "$root/opt" "$root/etc" "$root/usr"
