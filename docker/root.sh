#!/bin/sh
# Completes the root file system of the image in the folder given: system libraries that the binary
# and ONNX Runtime name, CA roots, the user, and a folder that this user may write.
set -eu
root=$1

# `ldd` resolves the whole closure; a name it cannot find must stop the build.
ldd "$root"/opt/rerankd/rerankd "$root"/opt/rerankd/libonnxruntime.so > /tmp/ldd
if grep 'not found' /tmp/ldd; then exit 1; fi
grep -o '/[^ ]*\.so[^ ]*' /tmp/ldd | grep -v "^$root" | sort -u | while read -r library; do
    mkdir -p "$root$(dirname "$library")"
    cp -L "$library" "$root$library"
    # The licence of the package it came from.
    package=$(dpkg -S "*/$(basename "$library")" | head -n 1 | cut -d: -f1)
    mkdir -p "$root/usr/share/doc/$package"
    cp -L "/usr/share/doc/$package/copyright" "$root/usr/share/doc/$package/"
done

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
