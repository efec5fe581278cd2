#!/usr/bin/env bash
# Certificates for a Dask cluster: infra/certificates.sh FOLDER [DAYS]
#
# A new CA, and one certificate with its key that scheduler, workers and Boostline share: whoever has
# it belongs to the cluster. The names are those of a Secret of the type kubernetes.io/tls. The CA's
# key is not kept: for new certificates run this again.
set -euo pipefail

folder=${1:?usage: infra/certificates.sh FOLDER [DAYS]}
days=${2:-365}
umask 077
mkdir -p "$folder"
if [ -e "$folder/tls.key" ]; then
    echo "$folder/tls.key is there already: remove it first, or choose another folder" >&2
    exit 1
fi
authority=$(mktemp -d)
trap 'rm -rf "$authority"' EXIT
key=(-newkey ec -pkeyopt ec_paramgen_curve:prime256v1 -noenc)
openssl req -x509 "${key[@]}" -keyout "$authority/ca.key" -out "$folder/ca.crt" -days "$days" \
    -subj "/CN=Boostline Dask CA" \
    -addext "basicConstraints=critical,CA:TRUE" -addext "keyUsage=critical,keyCertSign,cRLSign"
openssl req "${key[@]}" -keyout "$folder/tls.key" -out "$authority/dask.csr" -subj "/CN=dask"
openssl x509 -req -in "$authority/dask.csr" -CA "$folder/ca.crt" -CAkey "$authority/ca.key" \
    -set_serial "0x$(openssl rand -hex 16)" -days "$days" -out "$folder/tls.crt" -extfile <(
        echo "subjectAltName=DNS:dask"
        echo "subjectKeyIdentifier=hash"
        echo "authorityKeyIdentifier=keyid"
        echo "extendedKeyUsage=serverAuth,clientAuth"
    )
echo "ca.crt, tls.crt and tls.key are in $folder; they hold for $days days"
