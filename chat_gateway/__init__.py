"""The gateway itself: ties the pipeline and the chat stages to sockets, processes, files and terminals."""
