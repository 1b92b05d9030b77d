package narinfo

// CacheInfo is the text of nix-cache-info, the same that Guix's own server gives:
// its priority is below any other server's, and Nix is not to ask it for many
// items at once.
const CacheInfo = "StoreDir: " + StoreDir + "\nWantMassQuery: 0\nPriority: 100\n"
