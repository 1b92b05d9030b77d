package peer

// TestItem is for tests outside of the package.
var TestItem = testItem
