#!/bin/sh
# collect-postgres.sh PREFIX TARGET: copy PostgreSQL's programs below PREFIX (/usr/lib/postgresql/16) with the libraries they are linked
# to into TARGET, at the same paths. The libraries go to PREFIX/lib, where scholaria-ops looks for them: the image they run in need not
# have them. The C library and its loader stay out; both images are of the same Debian release.
set -eu
prefix=$1
target=$2
major=${prefix##*/}
mkdir -p "$target$prefix" "$target/usr/share/postgresql"
cp -a "$prefix/bin" "$prefix/lib" "$target$prefix/"
cp -a "/usr/share/postgresql/$major" "$target/usr/share/postgresql/"
# Just-in-time compilation would bring all of LLVM; the server does without where it is absent.
rm -rf "$target$prefix"/lib/llvmjit* "$target$prefix/lib/bitcode"
find "$target$prefix" -type f \( -perm -u+x -o -name '*.so*' \) -exec ldd {} + 2>/dev/null |
    awk '$2 == "=>" && $3 ~ /^\// {print $3}' | sort -u |
    while read -r library; do
        case ${library##*/} in
        libc.so.* | libm.so.* | libdl.so.* | librt.so.* | libpthread.so.* | libresolv.so.* | ld-linux*) ;;
        *) cp -L "$library" "$target$prefix/lib/" ;;
        esac
    done
test -e "$target$prefix/bin/initdb"
test -n "$(find "$target$prefix/lib" -name 'libpq.so.*')"
