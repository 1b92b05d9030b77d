package httpapi

import "sync"

// Turns returns the turns of the decoders, for others that compute as much: it is locked
// while one does, and may be by as many as there are decoders that compute at a time.
func (s *Server) Turns() sync.Locker { return turns(s.decoders.turns) }

type turns chan struct{}

func (t turns) Lock()   { t <- struct{}{} }
func (t turns) Unlock() { <-t }
