"""Benches on a device that is reached over the system's ssh.

One run, whoever does what::

    here                                        on the device
    session   what the verb asks for, in order  agent    a program that each ssh brings along; stdlib only
    parcels   what is copied, by its content             keeps parcels, starts and follows runs
    connection  one ssh, one request            runner   the bench, detached; writes its answer into its folder
"""
