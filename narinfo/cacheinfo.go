package narinfo

// CacheInfo is the text of nix-cache-info, the same as that of Guix's own server: its priority
// is below any other server's, and Nix sends no mass queries.
const CacheInfo = "StoreDir: " + StoreDir + "\nWantMassQuery: 0\nPriority: 100\n"
