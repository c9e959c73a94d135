package election

import "context"

type idleLoop struct{}

func (idleLoop) RunLeader(ctx context.Context)                           { <-ctx.Done() }
func (idleLoop) RequestSwitchover(ctx context.Context, to string) error { return errNotLeader }

func newControllerFor(c Coordinator, cfg Config) LeaderLoop { return idleLoop{} }
